"""Train an arm of a comparison from one seed, and measure it before and after; what was done before is read again.

Axes in names: n sequences.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lathe import codec
from lathe.evals.loss import estimate_ratio, sum_moments
from lathe.evals.paired import SequenceLosses, measure_sequences
from lathe.inherit.arms import Model, Source, stack
from lathe.inherit.ledger import Charge
from lathe.inherit.lines import Costs, Line
from lathe.inherit.results import Curve, Trial
from lathe.model.checkpoint import WEIGHTS, load_shape_of, read_tensors, save_checkpoint
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.content import hash_weights
from lathe.train.execution import Execution
from lathe.train.meter import METRICS, read_metrics
from lathe.train.text import open_text
from lathe.train.weights import first_weights

STARTS, RUNS, LOSSES, TABLE = "starts", "runs", "losses", "runs.jsonl"
DIGITS = 12
"""Of a recipe's id, in the name of its folder."""
POINTS = 60
"""Of a training curve that is kept, at most."""
KEPT = "sequence-losses"
Report = Callable[[str], None]
Train = Callable[[Recipe, Execution], Run]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Hold a trial, its losses by sequence, what it spent, and its training loss over the FLOPs spent so far."""

    trial: Trial
    losses: SequenceLosses
    charges: tuple[Charge, ...]
    curve: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Hold losses by sequence as they are kept: targets, and nats summed over them."""

    targets: tuple[float, ...]
    nats: tuple[float, ...]


class Trials:
    """Train and measure arms in a study's folder, on its text, each training run as the study says."""

    def __init__(
        self, folder: Path, reference: Path, base: Recipe, execution: Execution, *, train_with: Train, report: Report
    ) -> None:
        self.folder, self.reference, self.base, self.execution = folder, reference, base, execution
        self.train_with, self.report = train_with, report
        self.split = next(iter(open_text(base).validation.values()))
        self.content = hash_weights(reference)

    def try_line(self, line: Line, source: Source, costs: Costs, seed: int) -> Tried:
        """Train an arm from a seed, in two stages if it is stacked; measure it before the last one and after."""
        charges, curve, half = [*line.before], [*Curve()], None
        if line.first is not None:
            half, run = self._train(replace(line.first, seed=seed), f"{line.name}, first half, seed {seed}")
            curve += _read_curve(half, charges, costs.step_flops(line.first.shape, line.arm))
            charges.append(_charge("training half of the layers", run, run.flops))
        recipe, begun = replace(line.recipe, seed=seed), self._begin(line, source, seed, half)
        if begun is not None:
            init = replace(recipe.init, checkpoint=str(begun.absolute()), content=hash_weights(begun))
            recipe = replace(recipe, init=init)
        before = self._measure_drawn(recipe) if begun is None else self.measure(begun)
        place, run = self._train(recipe, f"{line.name}, seed {seed}")
        after = self.measure(place)
        curve += _read_curve(place, charges, costs.step_flops(line.shape, line.arm))
        charges += _charge_run(recipe, run, costs.teacher_flops(line.arm))
        self.report(f"{line.name}, seed {seed}: loss {before.loss:.4f} → {after.loss:.4f}")
        trial = Trial(
            seed=seed, recipe_id=recipe.id, folder=str(place.relative_to(self.folder)), start_loss=before.loss,
            loss=after.loss, seconds=sum(one.seconds or 0.0 for one in charges),
        )  # fmt: skip
        return Tried(trial=trial, losses=after, charges=tuple(charges), curve=tuple(curve))

    def _begin(self, line: Line, source: Source, seed: int, half: Path | None) -> Path | None:
        """Write an arm's first weights as a checkpoint; None where the recipe draws them.

        `half` is the checkpoint to stack. A checkpoint is named by what its weights hang on, and written once.
        """
        if half is not None:
            asked = [line.key, line.shape, hash_weights(half)]
            make = partial(_stack, half, line.shape.n_layers)
        elif (start := line.arm.start) is not None:
            drawn = [seed, source.scheme] if line.arm.drawn else []
            asked = [line.key, line.shape, source.layers, source.influential, source.width_by, self.content, drawn]
            make = partial(start, source, line.blocks, seed)
        else:
            return None
        place = self.folder / STARTS / _hash(asked)
        if not (place / WEIGHTS).is_file():
            save_checkpoint(place, *make(), companions=self.reference)
        return place

    def measure(self, checkpoint: Path) -> SequenceLosses:
        """Measure a checkpoint's held-out loss by sequence; what was measured before is read."""
        return self._keep(hash_weights(checkpoint), lambda: self._measure(checkpoint))

    def _measure_drawn(self, recipe: Recipe) -> SequenceLosses:
        """Measure the first weights that a recipe draws."""

        def measure() -> SequenceLosses:
            with tempfile.TemporaryDirectory(prefix="lathe-start-") as place:
                save_checkpoint(place, recipe.shape, dict(first_weights(recipe)))
                return self._measure(Path(place))

        return self._keep(_hash([recipe.shape, recipe.init, recipe.seed]), measure)

    def _measure(self, checkpoint: Path) -> SequenceLosses:
        data = self.base.data
        assert data is not None
        return measure_sequences(
            checkpoint, self.split, seq_len=self.base.seq_len, across_documents=data.across_documents,
            mask_documents=data.mask_documents, device=self.execution.device or "cpu",
        )  # fmt: skip

    def _keep(self, weights: str, measure: Callable[[], SequenceLosses]) -> SequenceLosses:
        """Read losses from the study's folder, or measure them and keep them there."""
        path = self.folder / LOSSES / f"{_hash([weights, self.base.data, self.base.seq_len])}.json"
        if path.is_file():
            kept = codec.load(_Kept, path, kind=KEPT)
            return SequenceLosses(targets_n=np.array(kept.targets), nats_n=np.array(kept.nats))
        found = measure()
        path.parent.mkdir(exist_ok=True)
        kept = _Kept(targets=tuple(found.targets_n.tolist()), nats=tuple(found.nats_n.tolist()))
        codec.save(kept, path, kind=KEPT)
        return found

    def _train(self, recipe: Recipe, name: str) -> tuple[Path, Run]:
        place = self.folder / RUNS / recipe.id[:DIGITS]
        execution = replace(self.execution, out=str(place), runs=str(self.folder / TABLE), name=name)
        return place, self.train_with(recipe, execution)


def average(several: Sequence[SequenceLosses]) -> SequenceLosses:
    """Average losses of several models over the same text, sequence by sequence."""
    nats_n = np.mean([one.nats_n for one in several], axis=0)
    return SequenceLosses(targets_n=several[0].targets_n, nats_n=nats_n)


def standard_error(losses: SequenceLosses) -> float | None:
    """Give the mean loss's standard error over sequences; None of a single one."""
    return estimate_ratio(sum_moments(torch.from_numpy(losses.targets_n), torch.from_numpy(losses.nats_n))).se


def _stack(half: Path, n_layers: int) -> Model:
    return stack(load_shape_of(half), read_tensors(half / WEIGHTS), n_layers)


def _charge(what: str, run: Run, flops: float | None) -> Charge:
    return Charge(what=what, kind="training", flops=flops, seconds=run.seconds)


def _charge_run(recipe: Recipe, run: Run, teacher_flops: float) -> list[Charge]:
    """Charge a training, its teacher's forward passes apart: those of a step are `teacher_flops`."""
    taught = recipe.steps * teacher_flops
    found = [_charge("training", run, None if run.flops is None else run.flops - taught)]
    if taught:
        found.append(Charge(what="the teacher's forward passes", kind="training", flops=taught))
    return found


def _read_curve(place: Path, before: Sequence[Charge], step_flops: float) -> Curve:
    """Read a training loss over the FLOPs spent by then, those before it included: means of steps that lie together."""
    spent = sum(one.flops or 0.0 for one in before)
    rows = [(row["step"], row["loss"]) for row in read_metrics(place / METRICS) if row["loss"] is not None]
    parts = [part for part in np.array_split(np.array(rows), min(POINTS, len(rows))) if len(part)] if rows else []
    return tuple((spent + float(part[:, 0].mean()) * step_flops, float(part[:, 1].mean())) for part in parts)


def _hash(asked: Sequence[Any]) -> str:
    return hashlib.sha256(codec.canonical_json(codec.encode(list(asked))).encode()).hexdigest()[:16]
