"""Grow a small model until it is as good as its reference: train, compare, append the reference's next layers, again.

    reference.json          the reference's held-out loss, sequence by sequence
    round-1-6/start/        what a round begins with: a checkpoint
    round-1-6/run/          its training, and in the end the round's checkpoint
    round-1-6/round.json    what it came to
    grown.json  runs.jsonl  the whole, and the runs

A round that is finished is read again, and a training that was stopped goes on: a growth that was killed comes to what
it would have come to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lathe import codec
from lathe.data.store import Split
from lathe.errors import StudyError
from lathe.evals.paired import SequenceLosses, measure_sequences, paired_difference
from lathe.hub.sharing import unroll
from lathe.inherit.growth import GROWN, End, Grown, Growth, Round
from lathe.inherit.layers import inherit_layers
from lathe.inherit.ledger import Charge, Ledger, charge_evaluation, charge_reference, charge_training, sum_flops
from lathe.model.checkpoint import WEIGHTS, load_shape_of, read_tensors, save_checkpoint
from lathe.recipe import Init, Recipe
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.content import hash_weights
from lathe.train.execution import Execution
from lathe.train.folder import RUN, hold_folder
from lathe.train.loop import train
from lathe.train.record import TABLE
from lathe.train.text import open_text
from lathe.train.tokens import check_same_tokenizer, check_same_tokens

REFERENCE, ROUND = "reference.json", "round.json"
START, TRAINED = "start", "run"
Report = Callable[[str], None]
Train = Callable[[Recipe, Execution], Run]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Hold the model that is to be matched: unrolled where it shares layers, and its losses by sequence."""

    folder: Path
    shape: Shape
    weights: dict[str, Tensor]
    split: Split
    losses: SequenceLosses


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Hold a reference's losses as they are kept, and what they are of: weights, data and seq_len."""

    content: str
    data: str | None
    seq_len: int
    targets: tuple[float, ...]
    nats: tuple[float, ...]


def grow(
    asked: Growth,
    recipe: Recipe,
    execution: Execution,
    folder: str | Path,
    *,
    train_with: Train = train,
    report: Report = print,
) -> Grown:
    """Carry a growth out in a folder, or go on with one that was stopped.

    Args:
        recipe: a round's, with the reference's shape; see `lathe.inherit.growth.load_growth`.
        train_with: what trains a recipe.

    Raises:
        StudyError: more layers than the reference has, a budget that not even the first round keeps to, or a folder
            of another growth.
        RecipeError: data of other tokens than the reference's; and what `lathe.train.loop.train` raises.
    """
    folder = Path(folder)
    shape = check_same_tokens(asked.reference, recipe, who="the reference")
    first = asked.layers or max(1, shape.n_layers // 2)
    if first > shape.n_layers:
        raise StudyError(f"layers={first} are more than the reference's {shape.n_layers}; begin with fewer")
    if doubt := check_same_tokenizer(asked.reference, recipe, who="the reference"):
        report(f"warning: {doubt}")
    with ExitStack() as stack:
        stack.enter_context(hold_folder(folder))
        reference = _open_reference(Path(asked.reference), recipe, folder, report=report)
        return _rounds(asked, recipe, execution, folder, reference, first, train_with=train_with, report=report)


def _rounds(
    asked: Growth, recipe: Recipe, execution: Execution, folder: Path, reference: Reference, layers: int, *,
    train_with: Train, report: Report,
) -> Grown:  # fmt: skip
    """Train round after round, up to the end."""
    n_layers, read = reference.shape.n_layers, recipe.seq_len
    evaluated = charge_evaluation("the reference's loss", reference.shape, tokens=reference.losses.tokens, seq_len=read)
    charges, rounds = [evaluated], list[Round]()
    ended: End | None = None
    while ended is None:
        number, small = len(rounds) + 1, replace(reference.shape, n_layers=layers)
        ahead = [*charges, *_charge_round(number, replace(recipe, shape=small), reference.losses.tokens)]
        if asked.most_flops is not None and (total := sum_flops(ahead) or 0.0) > asked.most_flops:
            if not rounds:
                raise StudyError(
                    f"most_flops={asked.most_flops:.3g} is not enough for one round of {layers} layers, which takes "
                    f"{total:.3g}; allow more, or train on fewer tokens a round"
                )
            ended = "flops"
            break
        here = folder / f"round-{number}-{layers}"
        before = folder / f"round-{number - 1}-{rounds[-1].layers}" / TRAINED if rounds else None
        done, run = _round(
            replace(recipe, shape=small, seed=recipe.seed + number - 1), execution, here, reference, number,
            before=before, within_se=asked.within_se, train_with=train_with, report=report,
        )  # fmt: skip
        rounds.append(done)
        charges += _charge_round(number, replace(recipe, shape=small), reference.losses.tokens, run=run)
        report(_describe(done))
        if done.matched:
            ended = "matched"
        elif layers == n_layers:
            ended = "layers"
        elif number == asked.most_rounds:
            ended = "rounds"
        layers = min(n_layers, layers + asked.add)
    charges.append(
        charge_reference(
            reference.folder, load_shape_of(reference.folder), tokens=asked.reference_tokens, seq_len=recipe.seq_len
        )
    )
    grown = Grown(
        reference=asked.reference, reference_layers=n_layers, reference_loss=reference.losses.loss,
        dataset=str(reference.split.dataset.folder), rounds=tuple(rounds), ended=ended,
        checkpoint=rounds[-1].folder, ledger=Ledger(charges=tuple(charges)),
    )  # fmt: skip
    codec.save(grown, folder / "grown.json", kind=GROWN)
    return grown


def _charge_round(number: int, recipe: Recipe, tokens: int, *, run: Run | None = None) -> list[Charge]:
    """Charge a round, as it will be or as it was: its training, and its loss before and after it."""
    what = f"round {number}, {recipe.shape.n_layers} layers"
    flops = recipe.shape.train_flops(recipe.steps * recipe.batch_tokens, recipe.seq_len)
    trained = Charge(what=what, kind="training", flops=flops) if run is None else charge_training(what, run)
    return [
        trained,
        charge_evaluation(f"{what}: loss before and after", recipe.shape, tokens=2 * tokens, seq_len=recipe.seq_len),
    ]


def _round(
    recipe: Recipe, execution: Execution, folder: Path, reference: Reference, number: int, *, before: Path | None,
    within_se: float, train_with: Train, report: Report,
) -> tuple[Round, Run]:  # fmt: skip
    """Train one round, if it is not done, and set it beside the reference; `before` is the last round's checkpoint."""
    start = folder / START
    _write_start(start, reference, recipe.shape.n_layers, before=before)
    init = Init(checkpoint=str(start.absolute()), content=hash_weights(start))
    recipe = replace(recipe, init=init)
    here = replace(
        execution, out=str(folder / TRAINED), runs=str(folder.parent / TABLE),
        name=f"round {number}, {recipe.shape.n_layers} layers",
    )  # fmt: skip
    if (folder / ROUND).is_file():
        done = codec.load(Round, folder / ROUND, kind="round")
        if done.recipe_id == recipe.id and (folder / TRAINED / RUN).is_file():
            return done, codec.load(Run, folder / TRAINED / RUN, kind="run")
    report(f"round {number}: {recipe.shape.n_layers} layers, {recipe.steps * recipe.batch_tokens:,} tokens")
    first = _measure(start, reference.split, recipe)
    run = train_with(recipe, here)
    found = _measure(folder / TRAINED, reference.split, recipe)
    apart = paired_difference(reference.losses, found)
    done = Round(
        number=number, layers=recipe.shape.n_layers, shape=recipe.shape, folder=str(folder / TRAINED),
        recipe_id=recipe.id, tokens=run.tokens, first_loss=first.loss, loss=found.loss,
        difference=apart.difference, se=apart.se, matched=apart.difference <= within_se * (apart.se or 0.0),
        flops=run.flops or 0.0,
    )  # fmt: skip
    codec.save(done, folder / ROUND, kind="round")
    return done, run


def _write_start(folder: Path, reference: Reference, layers: int, *, before: Path | None) -> None:
    """Write what a round begins with: the reference's first layers, and in their place those trained already."""
    shape, weights = inherit_layers(reference.shape, reference.weights, range(layers))
    if before is not None:
        weights |= read_tensors(before / WEIGHTS)
    if not (folder / WEIGHTS).is_file():
        save_checkpoint(folder, shape, weights, companions=reference.folder)


def _open_reference(checkpoint: Path, recipe: Recipe, folder: Path, *, report: Report) -> Reference:
    """Read the reference, and its loss on the first validation set: as it was measured, or now."""
    text = open_text(recipe)
    split = next(iter(text.validation.values()))
    assert recipe.data is not None
    content, path = hash_weights(checkpoint), folder / REFERENCE
    kept = codec.load(Kept, path, kind="reference-losses") if path.is_file() else None
    if kept is not None and (kept.content, kept.data, kept.seq_len) != (content, recipe.data.content, recipe.seq_len):
        raise StudyError(
            f"{folder} is of a growth towards another reference, or on other text; choose another --out, or repeat that"
        )
    if kept is None:
        report("measuring the reference")
        found = _measure(checkpoint, split, recipe)
        targets, nats = tuple(found.targets_n.tolist()), tuple(found.nats_n.tolist())
        kept = Kept(content=content, data=recipe.data.content, seq_len=recipe.seq_len, targets=targets, nats=nats)
        codec.save(kept, path, kind="reference-losses")
    losses = SequenceLosses(targets_n=np.array(kept.targets), nats_n=np.array(kept.nats))
    shape, weights = unroll(load_shape_of(checkpoint), read_tensors(checkpoint / WEIGHTS))
    return Reference(folder=checkpoint, shape=shape, weights=weights, split=split, losses=losses)


def _measure(checkpoint: Path, split: Split, recipe: Recipe) -> SequenceLosses:
    assert recipe.data is not None
    return measure_sequences(
        checkpoint, split, seq_len=recipe.seq_len, across_documents=recipe.data.across_documents,
        mask_documents=recipe.data.mask_documents,
    )  # fmt: skip


def _describe(done: Round) -> str:
    error = "" if done.se is None else f" ± {done.se:.4f}"
    return (
        f"round {done.number}: {done.layers} layers, loss {done.first_loss:.4f} → {done.loss:.4f}, "
        f"{done.difference:+.4f}{error} to the reference{': matched' if done.matched else ''}"
    )
