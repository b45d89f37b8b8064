"""Train a recipe: the loop, from top to bottom.

    a step      learning rate ← schedule(step)        batch ← loader(step + batches left out)
                gradients of the mean loss over the step's targets, clipped → optimisers → moving average
                a line of metrics.jsonl; at intervals a checkpoint, held-out losses, an analysis of the layers
    the end     held-out losses, the weights, run.json, a row in the table of runs

All that a step hangs on is the recipe and the state that checkpoints hold, so a run that was killed goes on as if it
had not been. WSD branches begin from the trunk's checkpoint where their decay begins, and are the very runs that their
recipes, the trunk's with fewer tokens, would give alone.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.data.loader import to_torch
from lathe.data.prefetch import prefetch
from lathe.errors import CheckpointError, EvaluationError, Stopped, TrainingError
from lathe.evals.loss import HeldOut, held_out_loss
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.branches import branch_recipes
from lathe.train.conditions import differences, record
from lathe.train.engine import open_engine
from lathe.train.execution import Execution
from lathe.train.folder import BRANCHES, RUN, clear, finished, hold_folder, prepare
from lathe.train.layers import draw_sample
from lathe.train.meter import METRICS, find_peak
from lathe.train.optim import Ema, build_optimisers, set_lr
from lathe.train.result import make_run, runs_table, write_result
from lathe.train.schedule import decay_start
from lathe.train.session import Progress, Session, describe_saved, name_run
from lathe.train.signals import Signals
from lathe.train.snapshots import list_steps, prune
from lathe.train.spikes import Spike
from lathe.train.state import Saver, gather_tensors, load_latest, load_step
from lathe.train.teacher import check_tokenizer, teacher_flops
from lathe.train.text import open_text
from lathe.train.watch import Watch
from lathe.train.weights import first_weights

Report = Callable[[str], None]


def train(recipe: Recipe, execution: Execution, *, report: Report = print) -> Run:
    """Train a recipe in a folder, or go on where it was stopped; a finished one is left as it is.

    Branches are trained after it, each in a folder of its own. Raises:
        RecipeError: what cannot be trained so.
        DataError: data that are missing, too few, or of another vocabulary.
        TrainingError: a loss that is no number or has diverged; the last good checkpoint stays.
        Stopped: a signal asked to stop; the state is saved.
        CheckpointError: files that cannot be read or written, or another process on the folder.
    """
    out, report = Path(execution.out), report if is_main() else lambda _: None
    branches = {out / BRANCHES / str(one.tokens): one for one in branch_recipes(recipe, execution.branch_at)}
    if execution.resume == "must" and not (list_steps(out) or (out / RUN).exists()):
        raise CheckpointError(f"{out} has no checkpoint to go on from; leave out resume=must to begin anew")
    with hold_folder(out) if is_main() else nullcontext():
        trunk = finished(out, recipe)
        left = {folder: branch for folder, branch in branches.items() if finished(folder, branch) is None}
        if trunk is not None and not left:
            report(f"this recipe is trained already; its result is in {out}")
            return trunk
        with closing(Trainer(recipe, execution, report=report)) as trainer:
            if trunk is None:
                pinned = frozenset(decay_start(branch) for branch in left.values())
                trunk = trainer.run(recipe, out, trunk=recipe.id if branches else None, pinned=pinned)
            for folder, branch in left.items():
                trainer.run(branch, folder, trunk=recipe.id, begin=(out, decay_start(branch)))
        if is_main() and branches:
            prune(out, recipe.steps, keep_last=execution.keep_last, keep_every=execution.keep_every)
        return trunk


def is_main() -> bool:
    """Say whether this process is the one that writes what is written once."""
    return int(os.environ.get("RANK", "0")) == 0


class Trainer:
    """Hold what trains: engine, optimisers, moving average, data. Runs that differ in tokens alone may share it."""

    def __init__(self, recipe: Recipe, execution: Execution, *, report: Report) -> None:
        self.execution, self.report = execution, report
        if execution.threads is not None:
            torch.set_num_threads(execution.threads)
        self.text = open_text(recipe)
        self.sample = None if execution.analyse_every is None else draw_sample(self.text, seq_len=recipe.seq_len)
        check_tokenizer(recipe)
        self.teacher_flops = teacher_flops(recipe)
        self.engine = open_engine(recipe, execution, weights=first_weights(recipe))
        self.optimisers = build_optimisers(self.engine.module, recipe)
        self.ema = None if recipe.ema is None else Ema(self.engine.module, recipe.ema)
        self.conditions = record(self.engine.mesh.device)
        self.peak = find_peak(self.engine.mesh.device, recipe.dtype)

    def close(self) -> None:
        """End what runs beside."""
        self.engine.close()

    def run(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        trunk: str | None = None,
        begin: tuple[Path, int] | None = None,
        pinned: frozenset[int] = frozenset(),
    ) -> Run:
        """Train to the recipe's end and write what comes out.

        `trunk` is the id of the recipe that this one shares its stable phase with; `begin` names a run's folder and the
        step of its checkpoint to begin from, where this one has none yet; `pinned` are steps whose checkpoints are made
        and stay.
        """
        if is_main():
            prepare(folder, recipe)
            if self.execution.resume == "never":
                clear(folder)
        with ExitStack() as stack:
            signals = stack.enter_context(Signals())
            keep = {"keep_last": self.execution.keep_last, "keep_every": self.execution.keep_every, "pinned": pinned}
            saver = stack.enter_context(closing(Saver(folder, report=self.report, **keep)))
            progress = self._resume(recipe, folder, begin)
            watch = stack.enter_context(
                Watch(
                    recipe, self.execution, folder, self.engine.mesh, name=name_run(recipe, self.execution),
                    step=progress.step, meter=progress.meter, spikes=progress.watch,
                    energy_j=progress.energy_j, peak=self.peak, teacher_flops=self.teacher_flops, report=self.report,
                )
            )  # fmt: skip
            session = Session(
                recipe=recipe,
                folder=folder,
                pinned=pinned,
                progress=progress,
                saver=saver,
                watch=watch,
                signals=signals,
            )
            if progress.step in pinned:
                self._save(session)
            while progress.step < recipe.steps:
                self._steps(session)
            saver.wait()
            return self._finish(session, trunk)

    def _steps(self, session: Session) -> None:
        """Train to the end, or up to where training goes back to a checkpoint."""
        recipe, progress, watch = session.recipe, session.progress, session.watch
        mesh, asked = self.engine.mesh, self.execution
        start = progress.step + progress.left_out
        steps = recipe.steps - progress.step + (asked.most_spikes if asked.on_spike == "skip" else 0)
        place = {"rank": mesh.data_rank, "world": mesh.data_world}
        with closing(prefetch(self.text.loader, start=start, steps=steps, prepare=to_torch, **place)) as ahead:
            while progress.step < recipe.steps:
                watch.begin()
                batch = next(ahead)
                watch.got_batch()
                lr = set_lr(self.optimisers, recipe, progress.step)
                loss, z, divergence, norm = self._gradients(recipe, batch)
                spike = watch.spikes.judge(progress.step + 1, loss=loss, grad_norm=norm)
                if spike is not None:
                    self._pass_over(session, spike)
                    if asked.on_spike == "rewind":
                        self._rewind(session)
                        return
                    continue
                self._update(progress.step)
                progress.step += 1
                watch.step(
                    progress.step, loss=loss, z=z, divergence=divergence if self.teacher_flops else None,
                    grad_norm=norm, lr=lr, tokens=recipe.batch_tokens,
                )  # fmt: skip
                if _due(progress.step, asked.analyse_every):
                    self._analyse(session)
                last = progress.step == recipe.steps
                if last or progress.step in session.pinned or _due(progress.step, asked.save_every):
                    self._save(session)
                if not last and _due(progress.step, asked.evaluate_every):
                    watch.evaluated(progress.step, self.evaluate(recipe, asked.evaluate_tokens))
                if self.engine.any_rank(session.signals.caught is not None) and not last:
                    self._stop(session)

    def _gradients(self, recipe: Recipe, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float, float, float]:
        """Make the gradients of a batch's mean loss; gives loss, z and divergence per target, and the gradients' norm.

        The loss is cross-entropy, with a teacher too.
        """
        assert recipe.data is not None
        targets_bt = batch[1]
        count = float(recipe.batch_tokens)
        if not recipe.data.across_documents:
            count = float(self.engine.reduce((targets_bt >= 0).sum().double()))
        sums = self.engine.accumulate(*batch, count=count)
        stacked = torch.stack([sums.cross_entropy, sums.z, sums.divergence]).double()
        loss, z, divergence = (self.engine.reduce(stacked) / count).tolist()
        return loss, z, divergence, float(self.engine.clip(recipe.clip))

    def _update(self, step: int) -> None:
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(step)

    def evaluate(self, recipe: Recipe, most_tokens: int | None) -> dict[str, HeldOut]:
        """Measure the held-out loss of the weights, or of their moving average, on every validation set."""
        assert recipe.data is not None
        mesh, local = self.engine.mesh, max(1, recipe.batch_sequences // self.engine.mesh.data_world)
        sequences = self.execution.evaluate_sequences or self.execution.micro_batch or local
        with nullcontext() if self.ema is None else self.ema.applied():
            return {
                name: held_out_loss(
                    self.engine.losses, split, seq_len=recipe.seq_len, batch_sequences=sequences,
                    most_tokens=most_tokens, rank=mesh.data_rank, world=mesh.data_world, reduce=self.engine.reduce,
                    across_documents=recipe.data.across_documents, mask_documents=recipe.data.mask_documents,
                    device=mesh.device,
                )
                for name, split in self.text.validation.items()
            }  # fmt: skip

    def _analyse(self, session: Session) -> None:
        """Note what the layers do; one process looks, as each has the whole decoder."""
        if not is_main():
            return
        assert self.sample is not None
        step, watch = session.progress.step, session.watch
        try:
            with nullcontext() if self.ema is None else self.ema.applied():
                watch.analysed(step, self.sample.analyse(self.engine.module, name=f"step {step}"))
        except EvaluationError as error:  # weights that went wrong are for the next step's loss to tell
            watch.event(step, event="no analysis", reason=str(error))

    def _finish(self, session: Session, trunk: str | None) -> Run:
        recipe, watch = session.recipe, session.watch
        losses = self.evaluate(recipe, None)
        watch.evaluated(recipe.steps, losses)
        if not all(math.isfinite(one.loss) for one in losses.values()):
            raise TrainingError(f"the held-out loss after step {recipe.steps} is no number: {losses}")
        with nullcontext() if self.ema is None else self.ema.applied():
            weights = self.engine.full_weights()
        run = make_run(
            recipe, name=name_run(recipe, self.execution), trunk=trunk, losses=losses, meter=watch.meter,
            energy_j=watch.energy_j, conditions=self.conditions, teacher_flops=self.teacher_flops,
        )  # fmt: skip
        if is_main():
            write_result(recipe, run, session.folder, weights=weights, text=self.text, table=runs_table(self.execution))
        self.engine.barrier()
        return run

    def _tensors(self) -> dict[str, Any]:
        return gather_tensors(self.engine.module, self.optimisers, None if self.ema is None else self.ema.weights)

    def _save(self, session: Session) -> None:
        progress, watch = session.progress, session.watch
        watch.flush()
        progress.meter, progress.watch, progress.energy_j = watch.meter.state(), watch.spikes.state(), watch.energy_j
        session.saver.save(
            progress.step, self._tensors(), {"progress": asdict(progress), "conditions": self.conditions}
        )

    def _resume(self, recipe: Recipe, folder: Path, begin: tuple[Path, int] | None) -> Progress:
        """Load the newest checkpoint, or the one to begin from."""
        found = None if self.execution.resume == "never" else load_latest(folder, self._tensors(), report=self.report)
        if found is not None:
            step, extra = found
            self.report(f"going on after step {step} of {recipe.steps}")
        elif begin is not None:
            extra = load_step(*begin, self._tensors())
            if is_main():
                shutil.copyfile(begin[0] / METRICS, folder / METRICS)
        else:
            return Progress()
        for difference in differences(extra["conditions"], self.conditions):
            self.report(f"warning: {difference}: the run may no longer be the same to the bit")
        return Progress(**extra["progress"])

    def _pass_over(self, session: Session, spike: Spike) -> None:
        """Drop a step's gradients; raises TrainingError where training is to stop."""
        progress = session.progress
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        batch = progress.step + progress.left_out
        session.watch.event(progress.step, event="spike", reason=spike.reason, batch=batch)
        progress.left_out, progress.spikes = progress.left_out + 1, progress.spikes + 1
        if self.execution.on_spike != "stop" and progress.spikes <= self.execution.most_spikes:
            self.report(f"{spike.reason}, on batch {batch}: left out")
            return
        session.saver.wait()
        advice = "" if self.execution.on_spike != "stop" else "; or pass over such batches with on_spike=skip or rewind"
        many = f", the {progress.spikes}th spike" if progress.spikes > 1 else ""
        raise TrainingError(
            f"{spike.reason}, on batch {batch} of seed {self.text.loader.seed}{many}; "
            f"{describe_saved(session.folder)}; lower lr, warm up for longer{advice}"
        )

    def _rewind(self, session: Session) -> None:
        """Go back to the last checkpoint, and leave out the batches since."""
        progress, watch, folder = session.progress, session.watch, session.folder
        session.saver.wait()
        reached = progress.step + progress.left_out
        found = load_latest(folder, self._tensors(), report=self.report)
        if found is None:
            raise TrainingError(f"there is no checkpoint in {folder} to go back to; give save_every")
        before = Progress(**found[1]["progress"])
        progress.step, progress.left_out = before.step, reached - before.step
        watch.rewind(before.step, meter=before.meter, spikes=before.watch)
        watch.event(before.step, event="rewind", left_out=progress.left_out)
        self.report(f"back at step {before.step}; the batches since are left out")

    def _stop(self, session: Session) -> None:
        self._save(session)
        session.saver.wait()
        raise Stopped(
            f"stopped by {session.signals.caught or 'a signal to another rank'} after step {session.progress.step} of "
            f"{session.recipe.steps}; {describe_saved(session.folder)}; the same command goes on"
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
