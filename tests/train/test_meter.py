"""The meter's arithmetic, and a metrics.jsonl that is the same however often training was killed."""

import errno
import json
import math
import os

import pytest
import torch

from lathe.errors import CheckpointError
from lathe.presets.devices import load_device
from lathe.shape import Shape
from lathe.train import meter as meter_module
from lathe.train.meter import DETERMINISTIC, GPUS, Meter, MetricsFile, Peak, find_peak, measure_peak, read_metrics

CPU = torch.device("cpu")
SHAPE = Shape.of(d_model=32, n_layers=2, n_heads=2, vocab_size=64)
PEAK = Peak(flops_per_s=1e12, origin="made up")


def make_meter(**options):
    return Meter(SHAPE, seq_len=16, device=CPU, peak=PEAK, **options)


def measure(meter, step, **values):
    given = {"loss": 3 + 1 / (step + 1), "z": 0.1, "grad_norm": 0.3, "lr": 1e-3, "tokens": 64, "seconds": 0.5}
    return meter.measure(step, **(given | {"data_wait_s": 0.01} | values))


def test_rates_and_mfu_follow_from_the_step():
    row = measure(make_meter(world=2), 1, tokens=128, seconds=0.25)
    assert row["tokens_per_s"] == 512
    assert row["flops_per_s"] == pytest.approx(SHAPE.train_flops(128, 16) / 0.25)
    assert row["mfu"] == pytest.approx(row["flops_per_s"] / 2e12)
    assert row["memory_bytes"] > 1e6
    assert 0 <= row["elapsed_s"] < 60
    assert set(DETERMINISTIC) < set(row)


def test_the_mean_loss_of_a_resumed_run_is_the_same_to_the_bit():
    whole, first = make_meter(), make_meter()
    for step in range(1, 41):
        row = measure(whole, step, tokens=64 + step)
        if step <= 17:
            measure(first, step, tokens=64 + step)
    kept = first.state()
    second = make_meter(state=json.loads(json.dumps(kept)))
    for step in range(18, 41):
        resumed = measure(second, step, tokens=64 + step)
    assert second.mean_loss == whole.mean_loss
    assert resumed["tokens"] == row["tokens"] == sum(64 + step for step in range(1, 41))
    assert second.elapsed_s > kept["elapsed_s"]
    assert make_meter().mean_loss is None


def test_a_mean_weighs_by_tokens():
    meter = make_meter()
    measure(meter, 1, loss=4.0, tokens=10)
    measure(meter, 2, loss=1.0, tokens=30)
    assert meter.mean_loss == 1.75


def test_drivers_names_find_presets(monkeypatch):
    for preset in GPUS.values():
        load_device(preset)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    mixed = find_peak(torch.device("cuda"), "bf16-mixed")
    assert mixed.flops_per_s == 989.4e12
    assert "H100 SXM, dense bf16: NVIDIA" in mixed.origin
    assert find_peak(torch.device("cuda"), "fp32").flops_per_s == 66.9e12


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL", "NVIDIA L4000"])
def test_unknown_gpus_and_slices_are_measured(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(meter_module, "measure_peak", lambda device, dtype: PEAK)
    assert find_peak(torch.device("cuda"), "bf16") is PEAK


def test_fp32_in_tf32_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(meter_module, "measure_peak", lambda device, dtype: PEAK)
    assert find_peak(torch.device("cuda"), "fp32") is PEAK


def test_a_cpus_peak_is_measured_and_says_so():
    peak = measure_peak(CPU, "fp32", size=128)
    assert 1e6 < peak.flops_per_s < 1e14
    assert peak.origin == f"measured: a 128³ product in float32 on {torch.get_num_threads()} threads"


def train(path, steps, *, start=0, seconds=0.5):
    """Write lines as a training would, and leave the file as a kill does: without closing it."""
    meter, file = make_meter(), MetricsFile(path, step=start)
    meter.tokens = 64 * start
    for step in range(start + 1, steps + 1):
        file.write("step", measure(meter, step, seconds=seconds))
        if step % 10 == 0:
            file.write("evaluation", {"step": step, "held-out": 3.0})
    file.flush(sync=True)
    return file


def curve(path):
    return [{name: row[name] for name in DETERMINISTIC} for row in read_metrics(path)]


@pytest.mark.parametrize("killed_at", [1, 19, 20, 21, 37, 60])
@pytest.mark.parametrize("torn", [b"", b'{"kind": "step", "ste'])
def test_the_curve_of_a_killed_run_is_that_of_one_never_killed(tmp_path, killed_at, torn):
    train(tmp_path / "whole.jsonl", 60)
    path = tmp_path / "killed.jsonl"
    train(path, killed_at, seconds=0.4)
    with open(path, "ab") as file:
        file.write(torn)
    train(path, 60, start=killed_at // 10 * 10)
    assert curve(path) == curve(tmp_path / "whole.jsonl")
    assert [row["step"] for row in read_metrics(path, kind="evaluation")] == [10, 20, 30, 40, 50, 60]


def test_an_untouched_file_stays_as_it_is_and_torn_middles_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train(path, 5)
    before = path.stat().st_ino
    MetricsFile(path, step=5).close()
    assert path.stat().st_ino == before
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"kind": "st\n', b"[1]\n", b'{"kind": "step"}\n', *lines[1:]]))
    MetricsFile(path, step=4).close()
    assert path.read_bytes() == b"".join(lines[:4])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_training_that_goes_back_drops_later_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = train(path, 25)
    file.write("step", {"step": 26, "loss": 3.0})
    file.rewind(20)
    file.write("event", {"step": 20, "what": "rewind", "from": 26})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == list(range(1, 21))
    assert [row["from"] for row in read_metrics(path, kind="event")] == [26]


def test_a_new_run_begins_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train(path, 5)
    MetricsFile(path).close()
    assert path.read_bytes() == b""


def test_what_is_no_number_is_null(tmp_path):
    with_nan = MetricsFile(tmp_path / "m.jsonl")
    with_nan.write("event", {"step": 3, "loss": math.nan, "sets": {"a": math.inf, "b": 1.5}})
    with_nan.close()
    assert [*read_metrics(tmp_path / "m.jsonl", kind="event")] == [
        {"kind": "event", "step": 3, "loss": None, "sets": {"a": None, "b": 1.5}}
    ]


def test_lines_are_written_at_least_every_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
    file = MetricsFile(tmp_path / "m.jsonl")
    file.write("step", {"step": 1})
    assert (tmp_path / "m.jsonl").read_bytes() == b""
    now[0] += 1.0
    file.write("step", {"step": 2})
    assert [row["step"] for row in read_metrics(tmp_path / "m.jsonl")] == [1, 2]
    file.close()


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path, monkeypatch):
    path, said = tmp_path / "m.jsonl", []
    file = MetricsFile(path, report=said.append)
    file.write("step", {"step": 1})
    file.flush()
    write = os.write

    def full(descriptor, content):
        if len(content) > 10:
            return write(descriptor, bytes(content[:10]))  # a part fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for step in (2, 3):
        file.write("step", {"step": step})
        file.flush()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert [row["step"] for row in read_metrics(path)] == [1]
    monkeypatch.setattr(os, "write", write)
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/m.jsonl: cannot be written: No such file"):
        MetricsFile(tmp_path / "nowhere" / "m.jsonl")
    with pytest.raises(CheckpointError, match="cannot be read"):
        next(read_metrics(tmp_path / "m.jsonl"))
