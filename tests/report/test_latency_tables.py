"""What the tables of latencies and calibrations say."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from lathe.latency.calibrate import calibrate
from lathe.latency.roofline import predict_latency
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.report.latency_tables import calibration_table, format_bytes, format_seconds, latency_table
from lathe.workload import Workload

A100, PHONE = load_device("a100-40gb"), load_device("iphone-13")


def show(table: RenderableType) -> str:
    console = Console(width=200, record=True, file=None, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(table)
    return capture.get()


def test_one_device_and_engine_stand_in_the_title() -> None:
    names, work = ["open_lm_1b", "scale_open_lm_1b_v8"], Workload()
    found = [predict_latency(load_shape(n), device=A100, workload=work) for n in names]
    text = show(latency_table(names, found, devices=[A100, A100], workload=work))
    assert f"on {A100.name}, eager: 1 × (128 prompt + 256 new tokens), bf16" in text
    assert format_seconds(found[0].total_s) in text
    assert "launch" in text
    assert "engine" not in text.splitlines()[1]
    assert "compute_fraction, bandwidth_fraction assumed, not measured" in text


def test_several_devices_and_engines_have_columns() -> None:
    shape, work = load_shape("llama-2-7b"), Workload(prompt_tokens=2000, dtype="fp16")
    found = [
        predict_latency(shape, device=A100, workload=work, engine="graph"),
        predict_latency(shape, device=PHONE, workload=work),
    ]
    text = show(latency_table(["llama-2-7b"] * 2, found, devices=[A100, PHONE], workload=work))
    head = text.splitlines()[1].split()
    assert head[:3] == ["shape", "device", "engine"]
    assert "compute, then bandwidth" in text
    assert "! llama-2-7b needs" in text
    assert "Apple iPhone 13 has 4.29 GB" in text


def test_graphs_do_not_speak_of_launches() -> None:
    found = predict_latency(load_shape("open_lm_1b"), device=A100, workload=Workload(), engine="graph", bounds=False)
    text = show(latency_table(["open_lm_1b"], [found], devices=[A100], workload=Workload()))
    assert "launch" not in text
    assert "–" in text


def test_a_calibration_says_what_was_measured() -> None:
    found = calibrate({"shape": ["scale_open_lm_1b_v1", "scale_open_lm_1b_v8"], "total_s": [3.61, 1.96]}, A100)
    text = show(calibration_table(found))
    assert f"Calibrated: {A100.name}" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "17.9 µs" in rows["launch_s"]
    assert "measured here" in rows["launch_s"]
    assert "assumed, not fitted" in rows["compute_fraction"]
    assert "3.61 s" in rows["scale_open_lm_1b_v1"]
    assert "+0.0%" in rows["scale_open_lm_1b_v1"]
    assert "! as many numbers as times" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.61, "3.61 s"), (0.0156, "15.6 ms"), (1.79e-5, "17.9 µs"), (2e-9, "2 ns"), (0.0, "0 s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(2.88e9, "2.88 GB"), (5.6e6, "5.6 MB"), (12.0, "12 B"), (1.5e12, "1.5 TB")])
def test_bytes(size: float, text: str) -> None:
    assert format_bytes(size) == text
