"""The stages of a study: each takes what those before it gave, and gives what it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lathe import codec
from lathe.bench.here import calibrate_here
from lathe.bench.rows import Measurement, open_rows
from lathe.bench.runner import list_wanted, run_all
from lathe.budget import Budget
from lathe.data.build import build_dataset
from lathe.data.builtin import builtin_input
from lathe.data.readers import Input, Layout, open_inputs
from lathe.data.store import file_sha256
from lathe.data.tokenizer import train_tokenizer
from lathe.design.candidates import Space, candidates, find_space
from lathe.design.choice import Plan
from lathe.design.plan import plan as make_plan
from lathe.device import Device
from lathe.errors import BudgetError, StudyError
from lathe.latency.roofline import predict_latency
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.presets.devices import load_device, save_device
from lathe.presets.shapes import load_shape
from lathe.recipe import Data
from lathe.runs import Run
from lathe.shape import Shape, count_params
from lathe.sweep.entries import Entry
from lathe.sweep.kept import Made, hash_words
from lathe.sweep.study import MEDIAN, Fitting, Planning, Study, Target, Text
from lathe.train.content import hash_data
from lathe.train.text import open_mixture
from lathe.workload import PREDICTED_AS, Workload

Report = Callable[[str], None]
MEASUREMENTS = "measurements.jsonl"
LAW, DEVICE, PLAN = "law.json", "device.json", "plan.json"
VOLATILE = ("seconds", "energy_j", "created", "device", "git")
"""Columns of a run that differ when it is trained again."""
SCORES = "accuracy_"
"""Begins the columns that evaluation adds."""


def text_content(text: Text) -> dict[str, Any]:
    """Say what a study's text is, wherever it lies, so that a change makes the dataset anew. Raises DataError."""
    if text.dataset is not None:
        data = Data(train=text.dataset)
        return {"dataset": hash_data(data, open_mixture(data))}
    return {
        **codec.encode(replace(text, inputs=text.inputs[:1], tokenizer=None)),
        "inputs": [one.fingerprint for one in _open_inputs(text)],
        "tokenizer": None if text.tokenizer is None else _hash_file(Path(text.tokenizer)),
    }


def _open_inputs(text: Text) -> tuple[Input, ...]:
    if text.builtin:
        return (builtin_input(limit_bytes=text.limit_bytes),)
    return open_inputs(text.inputs, Layout(text_key=text.text_key))


def make_data(text: Text, folder: Path, report: Report) -> Made:
    """Build the dataset, and its tokenizer, unless the study names one that is built."""
    if text.dataset is not None:
        return Made(result={"dataset": text.dataset, "content": text_content(text)})
    inputs = _open_inputs(text)
    name = Path("data") / hash_words(text_content(text))[:8]
    (folder / name).mkdir(parents=True, exist_ok=True)
    tokenizer = Path(text.tokenizer) if text.tokenizer else folder / name / "tokenizer.json"
    if not tokenizer.is_file():
        train_tokenizer(inputs, vocab_size=text.vocab_size, out=tokenizer)
    dataset = name / "dataset"
    built = build_dataset(
        inputs, tokenizer=tokenizer, out=folder / dataset, text_key=text.text_key, held_out=text.held_out, report=report
    )
    files = [str(dataset / "dataset.json"), *(str(dataset / f"{shard.name}.bin") for shard in built.shards)]
    return Made(
        result={"dataset": str(dataset), "vocab_size": built.vocab_size, "tokens": sum(s.tokens for s in built.shards)},
        files=tuple(file for file in files if (folder / file).is_file()),
    )


def summarise_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Give the rows of runs without what differs from one training of a recipe to the next, and without scores."""
    rows = [run.to_row() for run in runs]
    return [{k: v for k, v in row.items() if k not in VOLATILE and not k.startswith(SCORES)} for row in rows]


def make_law(fitting: Fitting, table: str | Path, folder: Path, *, seed: int) -> Made:
    """Fit the law to a table of runs. Raises RunsError and LawError."""
    if fitting.file is not None:
        law = Law.load(fitting.file)
    else:
        runs = read_runs(table, where=fitting.where, validation=fitting.validation)
        law = fit(runs, fitting.form, draws=fitting.draws, folds=fitting.folds, seed=seed)
    law.save(folder / LAW)
    return Made(result={"file": LAW, "name": law.name, "content": _hash_file(folder / LAW)}, files=(LAW,))


def check_target(target: Target, workload: Workload) -> None:
    """Refuse a device that cannot serve the workload, before anything is trained for it. Raises DeviceError."""
    if not target.here:
        load_device(target.preset or str(target.file)).peak_flops(workload.dtype)


def make_device(target: Target, workload: Workload, shapes: Sequence[Shape], folder: Path, report: Report) -> Made:
    """Look the device up; or probe this machine, measure shapes on it, and fit its overheads to them."""
    if not target.here:
        device = load_device(target.preset or str(target.file))
        save_device(device, folder / DEVICE)
        return Made(result={"file": DEVICE, "content": _hash_file(folder / DEVICE), "fitted": []}, files=(DEVICE,))
    if not shapes:
        raise StudyError("[device] names no preset or file, and the study trains no shapes to measure here; give one")
    chosen = spread_out(shapes, target.shapes)
    measured = measure_shapes(chosen, target, workload, folder, report)
    found = calibrate_here(measured, device=target.device, threads=target.threads)
    save_device(found.device, folder / DEVICE)
    errors = [abs(r.error) for r in found.residuals]
    return Made(
        result={
            "file": DEVICE, "content": _hash_file(folder / DEVICE), "fitted": list(found.fitted),
            "measured": [m.name for m in measured], "mean_error": float(np.mean(errors)),
            "warnings": list(found.warnings),
        },
        files=(DEVICE,), shared=(MEASUREMENTS,), runs=len(measured),
    )  # fmt: skip


def spread_out(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """Choose shapes that lie far apart in width and depth: the largest, then each time the one farthest from those."""
    distinct = list(dict.fromkeys(shapes))
    place_n2 = np.log([[shape.d_model, shape.n_layers] for shape in distinct])
    chosen = [int(np.argmax([shape.params for shape in distinct]))]
    while len(chosen) < min(count, len(distinct)):
        distance_n = np.min([np.abs(place_n2 - place_n2[i]).sum(axis=1) for i in chosen], axis=0)
        chosen.append(int(np.argmax(distance_n)))
    return [distinct[i] for i in chosen]


def measure_shapes(
    shapes: Sequence[Shape], target: Target, workload: Workload, folder: Path, report: Report
) -> list[Measurement]:
    """Measure shapes on this machine; what was measured before is taken from the study's file of measurements."""
    known, warning = open_rows(folder / MEASUREMENTS)
    if warning is not None:
        report(warning)
    files = folder / "shapes"
    files.mkdir(exist_ok=True)
    paths = []
    for shape in shapes:
        paths.append(files / f"{name_shape(shape)}.json")
        codec.save(shape, paths[-1], kind="shape")
    wanted, notes = list_wanted(
        paths, workload, engines=(target.engine,), device=target.device, threads=target.threads
    )  # fmt: skip
    for note in notes:
        report(note)
    return run_all(wanted, known=known, out=folder / MEASUREMENTS, runs=target.runs)


def make_space(planning: Planning, law: Law) -> Space:
    """Make the space of shapes that the plan considers. Raises BudgetError."""
    choices: dict[str, Any] = {
        "d_models": planning.d_model and planning.d_model.numbers,
        "n_layers": planning.n_layers and planning.n_layers.numbers,
        "d_heads": planning.d_heads,
        "ff_multiple": planning.ff_multiple,
        "base": None if planning.like is None else load_shape(planning.like),
    }
    return find_space(law.axes, assume=planning.assume, **{k: v for k, v in choices.items() if v is not None})


def find_budget(planning: Planning, space: Space, device: Device, workload: Workload, *, engine: str) -> Budget:
    """Turn what a study may spend into a plan's budget. Raises BudgetError where no shape is of the size asked for."""
    limits = ("per_token_s", "first_token_s", "memory_bytes", "params", "min_params", "tokens")
    given = {name: getattr(planning, name) for name in limits}
    total_s = planning.total_s
    if total_s == MEDIAN:
        found = candidates(space, references=False)
        params_n = np.asarray(count_params(found))
        here = np.flatnonzero((params_n <= planning.params) & (params_n >= (planning.min_params or 0)))
        if not len(here):
            raise BudgetError(
                f"no shape of the plan's widths and depths has {planning.min_params or 0:g} to {planning.params:g} "
                "params; widen d_model, n_layers or the params"
            )
        times = predict_latency(found.take(here), device=device, workload=workload, engine=engine).total_s
        total_s = float(f"{np.median(np.asarray(times)):.4g}")
    return Budget(total_s=total_s, **given)


def find_largest(entries: Sequence[Entry]) -> float | None:
    """Give the FLOPs of the largest run, as budgets count them: 6 · params · tokens; None of no runs."""
    return max((6.0 * recipe.shape.params * recipe.tokens for e in entries for recipe in e.recipes), default=None)


def check_reach(planning: Planning, largest_flops: float | None) -> None:
    """Refuse a plan that asks more of the law than the study allows, where it is known what it is fitted to.

    Raises BudgetError.
    """
    asked = 6 * planning.params * planning.tokens
    if planning.most_flops is not None and largest_flops is not None and asked > planning.most_flops * largest_flops:
        raise BudgetError(
            f"[plan] asks for up to {asked:.3g} FLOPs, {asked / largest_flops:.1f} times those of the largest run "
            f"({largest_flops:.3g}), and most_flops is {planning.most_flops:g}; plan fewer params or tokens, or train "
            "larger runs"
        )


def make_choices(study: Study, law: Law, device: Device, folder: Path, *, largest_flops: float | None) -> Made:
    """Plan the shapes to train. Raises BudgetError, also for more extrapolation than the study allows."""
    planning, engine = study.plan, PREDICTED_AS.get(study.device.engine, study.device.engine)
    check_reach(planning, largest_flops)
    space = make_space(planning, law)
    budget = find_budget(planning, space, device, study.workload, engine=engine)
    found = make_plan(
        law, device, study.workload, budget, engine=engine, top=max(planning.top, 5), space=space,
        assume=planning.assume, level=study.law.level,
    )  # fmt: skip
    codec.save(found, folder / PLAN, kind="plan")
    return Made(
        result={
            "file": PLAN, "content": _hash_file(folder / PLAN), "budget_s": budget.total_s,
            "choices": [choice.name for choice in found.choices[: planning.top]],
        },
        files=(PLAN,),
    )  # fmt: skip


def load_plan(folder: Path) -> Plan:
    """Read the study's plan."""
    return codec.load(Plan, folder / PLAN, kind="plan")


def name_shape(shape: Shape) -> str:
    """Call a shape by width and depth, and a hash of all else."""
    return f"{shape.d_model}x{shape.n_layers}-{hash_words(shape)[:6]}"


def hash_named(*names: str | None) -> dict[str, str]:
    """Hash the files among what a study names, so that a change in one is noticed."""
    return {name: _hash_file(Path(name)) for name in names if name is not None and Path(name).is_file()}


def _hash_file(path: Path) -> str:
    return file_sha256(path)[:16]
