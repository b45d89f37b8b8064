"""Commands about devices, latency and plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lathe.cli.terminal import Words, check_level, need, open_console

if TYPE_CHECKING:
    from lathe.budget import Budget
    from lathe.workload import Workload

Engine = Literal["eager", "graph"]
Dtype = Literal["fp32", "bf16", "fp16", "int8", "int4"]
DeviceName = Annotated[
    str, arg(help="a preset's name (see `lathe devices`) or a TOML file, such as one of calibrate's")
]


def devices(name: Positional[str | None] = None) -> None:
    """List the devices that come with Lathe, or show where each number of one comes from.

    Example: lathe devices a100-40gb

    Args:
        name: a preset's name or a TOML file; all presets if not given.
    """
    from lathe.presets.devices import device_presets, load_device
    from lathe.report.device_tables import device_table, devices_table

    open_console().print(devices_table(device_presets()) if name is None else device_table(load_device(name)))


def latency(
    shapes: Positional[Words],
    device: Annotated[Words, arg(help="one or more presets' names or TOML files")],
    engine: tuple[Engine, ...] = ("eager", "graph"),
    batch: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 256,
    dtype: Dtype = "bf16",
    workload: Path | None = None,
    json: bool = False,
) -> None:
    """Predict what serving shapes takes on devices.

    Example: lathe latency scale_open_lm_1b_v8 m1b_neox --device a100-40gb

    Args:
        shapes: presets' names or files.
        engine: eager (every operation launched by the host), graph (captured or compiled), or both.
        batch: prompts served together.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens to generate for each.
        dtype: of the weights; int8 and int4 quantise weights only.
        workload: a TOML file with these four instead.
        json: print JSON, a line a prediction.
    """
    from lathe import codec
    from lathe.latency.roofline import predict_latency
    from lathe.presets.devices import load_device
    from lathe.presets.shapes import load_shape
    from lathe.report.latency_tables import latency_table

    need(shapes, "SHAPES", "a preset's name or a file")
    need(device, "--device", "a preset's name or a TOML file")
    need(engine, "--engine", "eager or graph")
    asked = read_workload(workload, batch, prompt_tokens, new_tokens, dtype)
    machines = [load_device(name) for name in device]
    rows = [(name, machine, e) for name in shapes for machine in machines for e in engine]
    found = [predict_latency(load_shape(name), device=m, workload=asked, engine=e) for name, m, e in rows]
    if json:
        for (name, machine, _), one in zip(rows, found, strict=True):
            row = {"shape": name, "device": machine.name, "total_s": one.total_s} | codec.encode(one)
            print(codec.canonical_json(row))
        return
    names, used = [name for name, _, _ in rows], [machine for _, machine, _ in rows]
    open_console().print(latency_table(names, found, devices=used, workload=asked))


def calibrate(
    measurements: Positional[Path],
    device: DeviceName,
    out: Path | None = None,
    engine: Engine | None = None,
    fit: Words = (),
) -> None:
    """Fit a device's overheads and achieved fractions of peak to measured latencies.

    The table has a column `shape` of names (or d_model, n_layers, …), the workload's columns (batch, prompt_tokens,
    new_tokens, dtype) where they differ from the defaults, and prefill_s, decode_s or total_s.

    Example: lathe calibrate measured.csv --device a100-40gb --out my-a100.toml

    Args:
        measurements: a .csv, .jsonl or .parquet file.
        out: where to write the calibrated device, as TOML.
        engine: how the rows were run, where the table does not say.
        fit: which of launch_s, step_s, compute_fraction and bandwidth_fraction to fit; those the rows identify if not
            given.
    """
    from lathe.documents import check_path
    from lathe.latency.calibrate import calibrate as calibrate_device
    from lathe.latency.measurements import read_measurements
    from lathe.presets.devices import load_device, save_device
    from lathe.report.latency_tables import calibration_table

    if out is not None:
        check_path(out, ".toml", ".json")
    found = calibrate_device(read_measurements(measurements), load_device(device), engine=engine, fit=fit or None)
    console = open_console()
    console.print(calibration_table(found))
    if out is not None:
        save_device(found.device, out)
        console.print(f"device: {out}")


def plan(
    law: Path,
    device: DeviceName,
    budget: Path | None = None,
    total_s: float | None = None,
    per_token_s: float | None = None,
    first_token_s: float | None = None,
    memory_bytes: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    train_flops: float | None = None,
    days: float | None = None,
    dollars: float | None = None,
    inference_tokens: float | None = None,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
    train_device: str | None = None,
    train_devices: int | None = None,
    mfu: float | None = None,
    engine: Engine = "eager",
    batch: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 256,
    dtype: Dtype = "bf16",
    workload: Path | None = None,
    top: int = 5,
    assume: Words = (),
    like: str | None = None,
    error_law: Path | None = None,
    level: float = 0.9,
    out: Path | None = None,
    plot: Path | None = None,
    recipe: Path | None = None,
) -> None:
    """Rank the shapes that a budget allows by the loss the law predicts for them.

    Example: lathe plan --law law.json --device a100-40gb --total-s 2 --params 1.7e9 --tokens 29e9 --plot plan.html

    Args:
        law: a law that `lathe fit --out` wrote.
        budget: a TOML file of limits (see `lathe.budget.Budget`); the flags below add to it or replace its numbers.
        total_s: most seconds for the whole answer.
        per_token_s: most seconds a decoded token.
        first_token_s: most seconds to the first token.
        memory_bytes: most memory for weights, cache and activations.
        params: most params.
        tokens: training tokens.
        train_flops: training FLOPs, 6 · params · tokens, instead of tokens.
        days: training days on --train-device, instead of tokens.
        dollars: price of training on --train-device, instead of or besides days.
        inference_tokens: tokens served over the model's life, with a target: the aim is then the cheapest life.
        target_loss: the loss to reach.
        target_accuracy: the accuracy to reach, through --error-law.
        train_device: what to train on: its peak and price say what each choice costs.
        train_devices: how many of them.
        mfu: share of their peak that training reaches.
        engine: eager (every operation launched by the host) or graph (captured or compiled).
        batch: prompts served together.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens to generate for each.
        dtype: of the weights; int8 and int4 quantise weights only.
        workload: a TOML file with these four instead.
        top: choices to show.
        assume: axes that no fitted run varied, to free all the same: ff_ratio, kv_ratio, vocab_size, tied, sharing.
        like: a shape (preset or file) that lends its blocks, and what the fitted runs do not say.
        error_law: a law of downstream error (`lathe fit --form error --target error`): choices then show accuracy.
        level: probability of the intervals.
        out: where to write the plan, as JSON.
        plot: where to draw it; .html is interactive, .png, .svg and .pdf are not.
        recipe: where to write the first choice's training recipe, as JSON.
    """
    from lathe import codec, documents
    from lathe.design.candidates import find_space
    from lathe.design.plan import plan as make_plan
    from lathe.errors import BudgetError
    from lathe.laws.law import Law
    from lathe.presets.devices import load_device
    from lathe.presets.shapes import load_shape
    from lathe.report.charts import check_plot_path, save_chart
    from lathe.report.plan_page import plan_page
    from lathe.report.plan_tables import name_nearest, plan_summary

    check_level(level)
    if plot is not None:
        check_plot_path(plot)
    for path in (out, recipe):
        if path is not None:
            documents.check_path(path, ".json")
    trainer = None if train_device is None else load_device(train_device)
    given = {
        "total_s": total_s, "per_token_s": per_token_s, "first_token_s": first_token_s, "memory_bytes": memory_bytes,
        "params": params, "tokens": tokens, "train_flops": train_flops, "days": days, "dollars": dollars,
        "inference_tokens": inference_tokens, "target_loss": target_loss, "target_accuracy": target_accuracy,
        "train_devices": train_devices, "mfu": mfu,
        "train_flops_per_s": None if trainer is None else trainer.peak_flops("bf16"),
        "price_per_hour": None if trainer is None else trainer.price_per_hour,
    }  # fmt: skip
    fitted = Law.load(law)
    found = make_plan(
        fitted, load_device(device), read_workload(workload, batch, prompt_tokens, new_tokens, dtype),
        _budget(budget, given), engine=engine, top=top, level=level,
        space=find_space(fitted.axes, assume=assume, base=None if like is None else load_shape(like)),
        error_law=None if error_law is None else Law.load(error_law),
    )  # fmt: skip
    console = open_console()
    console.print(plan_summary(found))
    if out is not None:
        codec.save(found, out, kind="plan")
        console.print(f"plan: {out}")
    if plot is not None:
        save_chart(plan_page(found), plot)
        console.print(f"plot: {plot}")
    if not found.choices:
        raise BudgetError(name_nearest(found))
    if recipe is not None:
        codec.save(found.recipe(), recipe, kind="recipe")
        console.print(f"recipe: {recipe}")


def read_workload(path: Path | None, batch: int, prompt_tokens: int, new_tokens: int, dtype: str) -> Workload:
    from lathe import codec
    from lathe.workload import Workload

    if path is not None:
        return codec.load(Workload, path, kind="workload")
    return Workload(batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens, dtype=dtype)


def _budget(path: Path | None, given: Mapping[str, Any]) -> Budget:
    """Read a budget, its numbers replaced by those of the flags that were given."""
    from lathe import codec, documents
    from lathe.budget import Budget

    numbers = {name: value for name, value in given.items() if value is not None}
    if path is None:
        return Budget(**numbers)
    body = codec.untag(documents.read_document(path), kind="budget", source=str(path), required=False)
    return codec.decode(Budget, {**body, **numbers}, source=str(path))
