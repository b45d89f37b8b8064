"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.plans import Dtype, read_workload
from lathe.cli.terminal import Progress, Words, need, open_console

Backend = Literal["lathe", "hf", "vllm", "llama.cpp"]
Engine = Literal["eager", "compile", "graph"]
Sweep = Literal["depth", "width", "head-dim", "batch", "iso-params"]


def measure(
    shapes: Positional[Annotated[Words, arg(help="presets' names, shape files, or checkpoints' folders")]],
    out: Path | None = None,
    sweep: tuple[Sweep, ...] = (),
    engine: tuple[Engine, ...] = (),
    backend: tuple[Backend, ...] = ("lathe",),
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 256,
    dtype: Dtype = "bf16",
    workload: Path | None = None,
    runs: int | None = None,
    seed: int = 0,
    again: bool = False,
    compare: str | None = None,
) -> None:
    """Measure what serving shapes or checkpoints takes here, and keep it for `lathe calibrate`.

    Example: lathe measure mobilellm-125m --sweep depth --dtype fp32 --threads 2 --out measurements.jsonl

    Args:
        out: the .jsonl file that each measurement is appended to; those it already has are not made again.
        sweep: families to measure around each shape, with random weights, instead of the shape alone.
        engine: how a backend runs a step; its own default if not given.
        backend: what serves: Lathe, Transformers (hf), vLLM or llama.cpp, all with the same weights.
        device: cpu, cuda, or another name that torch knows.
        threads: CPU threads; torch's if not given.
        batch: prompts served together.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens to generate for each.
        dtype: of the weights, on a CPU too, where fp32 may be faster; int8 and int4 quantise weights only.
        workload: a TOML file with these four instead.
        runs: fewest measured runs, after warming up; 10 if not given.
        seed: of prompts and of random weights.
        again: measure what the file already has, too, and replace it there.
        compare: a device (a preset's name or a file) whose predictions to set beside the measurements.
    """
    from lathe.bench.compare import compare as compare_rows
    from lathe.bench.rows import open_rows
    from lathe.bench.runner import list_wanted, run_all
    from lathe.presets.devices import load_device
    from lathe.report.latency_tables import comparison_table, measured_table

    need(shapes, "SHAPES", "a preset's name, a shape file or a checkpoint's folder")
    need(backend, "--backend", "a backend's name")
    predicted_on = None if compare is None else load_device(compare)
    asked = read_workload(workload, batch, prompt_tokens, new_tokens, dtype)
    wanted, notes = list_wanted(
        shapes, asked, sweeps=sweep, engines=engine, backends=backend, device=device, threads=threads, seed=seed
    )
    console = open_console()
    known, warning = ([], None) if out is None else open_rows(out)
    for note in notes if warning is None else [*notes, warning]:
        console.print(f"! {note}")
    with Progress("Measuring") as tick:
        found = run_all(wanted, known=known, again=again, out=out, runs=runs, progress=tick)
    console.print(measured_table(found))
    if predicted_on is not None:
        console.print(comparison_table(compare_rows(found, predicted_on)))
    if out is not None:
        console.print(f"measurements: {out}")


def probe(out: Path | None = None, device: str = "cpu", threads: int | None = None) -> None:
    """Measure this machine's arithmetic, memory and launch rates: a device for `lathe calibrate` to start from.

    Example: lathe probe --threads 2 --out this-machine.toml

    Args:
        out: where to write the device, as TOML or JSON.
        device: cpu, cuda, or another name that torch knows.
        threads: CPU threads; torch's if not given.
    """
    from lathe.bench.probe import probe_device
    from lathe.documents import check_path
    from lathe.presets.devices import save_device
    from lathe.report.device_tables import device_table

    if out is not None:
        check_path(out, ".toml", ".json")
    found = probe_device(device, threads=threads)
    console = open_console()
    console.print(device_table(found))
    if out is not None:
        save_device(found, out)
        console.print(f"device: {out}")
