"""Calibration against published latencies, planted devices, and tables that are no measurements."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lathe.device import Device, Origin
from lathe.errors import DeviceError
from lathe.latency.calibrate import PRIOR_SD, calibrate
from lathe.latency.measurements import read_measurements
from lathe.latency.roofline import predict_latency
from lathe.presets.devices import load_device, save_device
from lathe.presets.shapes import load_shape
from lathe.shape import Shape
from lathe.workload import Workload

A100 = load_device("a100-40gb")
PHONE = load_device("iphone-13")
CHAT = Workload(batch=1, prompt_tokens=128, new_tokens=256, dtype="bf16")
MORPH = {"shape": ["scale_open_lm_1b_v1", "scale_open_lm_1b_v8"], "total_s": [3.61, 1.96]}
ONE_TOKEN = {"prompt_tokens": 1, "new_tokens": 1, "dtype": "fp16", "engine": "graph"}


def with_numbers(device: Device, **numbers: float) -> Device:
    return device.with_numbers(dict.fromkeys(numbers, Origin(kind="assumed", source="a test")), **numbers)


def measure(device: Device, rows: list[tuple[str | Shape, Workload, str]], *, noise: float = 0.0) -> dict[str, Any]:
    """Make the table that a device would give, its rows' times each off by some normal noise in logs."""
    rng = np.random.default_rng(0)
    table: dict[str, list[Any]] = {n: [] for n in ("shape", "engine", "prefill_s", "decode_s")}
    table |= {f.name: [] for f in dataclasses.fields(Workload)}
    for shape, work, engine in rows:
        word = load_shape(shape) if isinstance(shape, str) else shape
        found = predict_latency(word, device=device, workload=work, engine=engine)
        table["shape"].append(shape)
        table["engine"].append(engine)
        for name in ("prefill_s", "decode_s"):
            table[name].append(getattr(found, name) * np.exp(noise * rng.standard_normal()))
        for field in dataclasses.fields(Workload):
            table[field.name].append(getattr(work, field.name))
    return table


class TestPublished:
    def test_two_openlm_rows_predict_the_third(self) -> None:
        """Bian et al. 2025, arXiv:2501.18107: Morph-1B-v2, 2560×16, takes 2.57 s on an A100."""
        found = calibrate(MORPH, A100)
        assert found.fitted == ("launch_s", "step_s")
        assert found.assumed == ("compute_fraction", "bandwidth_fraction")
        predicted = predict_latency(load_shape("scale_open_lm_1b_v3"), device=found.device, workload=CHAT)
        assert predicted.total_s == pytest.approx(2.57, rel=0.04)
        assert [r.error for r in found.residuals] == pytest.approx([0, 0], abs=1e-6)

    def test_the_neox_row_predicts_pythia(self) -> None:
        found = calibrate({"shape": ["neox-1.3b"], "total_s": [3.99]}, A100)
        assert found.fitted == ("launch_s",)
        predicted = predict_latency(load_shape("pythia-1.3b-morph"), device=found.device, workload=CHAT)
        assert predicted.total_s == pytest.approx(3.28, rel=0.15)

    def test_thirty_layers_on_a_phone_predict_shared_and_deep(self) -> None:
        """Liu et al. 2024 (MobileLLM), arXiv:2402.14905: one token's forward pass on an iPhone 13."""
        found = calibrate({"shape": ["mobilellm-125m"], "prefill_s": [0.0156], **ONE_TOKEN}, PHONE)
        assert found.fitted == ("bandwidth_fraction",)
        assert found.device.bandwidth_fraction * PHONE.bytes_per_s == pytest.approx(16e9, rel=0.01)
        work = Workload(prompt_tokens=1, new_tokens=1, dtype="fp16")
        deep = dataclasses.replace(load_shape("mobilellm-125m"), n_layers=60)
        for shape, seconds in ((load_shape("mobilellm-125m-ls"), 0.0160), (deep, 0.0290)):
            predicted = predict_latency(shape, device=found.device, workload=work, engine="graph")
            assert predicted.total_s == pytest.approx(seconds, rel=0.10)


TRUTH = {"launch_s": 2.1e-5, "step_s": 4e-3, "compute_fraction": 0.41, "bandwidth_fraction": 0.55}
LONG = Workload(batch=4, prompt_tokens=4000, new_tokens=64)
RICH: list[tuple[str | Shape, Workload, str]] = [
    *((name, CHAT, "eager") for name in ("scale_open_lm_80m_v1", "open_lm_1b", "scale_open_lm_237m_v6")),
    *((name, LONG, "graph") for name in ("open_lm_1b", "open_lm_7b", "scale_open_lm_80m_v1")),
]


class TestPlanted:
    def test_a_rich_table_gives_all_four_back(self) -> None:
        truth = with_numbers(A100, **TRUTH)
        found = calibrate(measure(truth, RICH), A100)
        assert found.fitted == tuple(PRIOR_SD)
        assert found.assumed == ()
        assert {n: getattr(found.device, n) for n in TRUTH} == pytest.approx(TRUTH, rel=1e-4)

    def test_intervals_hold_the_truth_and_origins_say_so(self) -> None:
        truth = with_numbers(A100, **TRUTH)
        found = calibrate(measure(truth, RICH, noise=0.02), A100)
        for name, value in TRUTH.items():
            origin = found.device.origins[name]
            assert origin.kind == "measured"
            assert "6 measurements (12 times)" in origin.source
            assert origin.low is not None
            assert origin.high is not None
            assert origin.low < value < origin.high < 1.6 * origin.low

    def test_one_wild_row_does_not_spoil_the_rest(self) -> None:
        truth = with_numbers(A100, **TRUTH)
        table = measure(truth, RICH)
        table["decode_s"][1] *= 3
        found = calibrate(table, A100)
        assert {n: getattr(found.device, n) for n in TRUTH} == pytest.approx(TRUTH, rel=0.05)
        assert any("row 2 (open_lm_1b): decode is predicted -66% off" in w for w in found.warnings)

    @pytest.mark.parametrize(
        ("shape", "work", "engine", "name"),
        [
            ("open_lm_1b", CHAT, "eager", "launch_s"),
            ("open_lm_7b", CHAT, "graph", "bandwidth_fraction"),
            ("open_lm_1b", Workload(batch=8, prompt_tokens=2000, new_tokens=1), "graph", "compute_fraction"),
        ],
    )
    def test_one_total_fixes_what_binds_it(self, shape: str, work: Workload, engine: str, name: str) -> None:
        truth = with_numbers(A100, **{name: TRUTH[name]})
        total = predict_latency(load_shape(shape), device=truth, workload=work, engine=engine).total_s
        found = calibrate({"shape": [shape], "total_s": [total], **dataclasses.asdict(work)}, A100, engine=engine)
        assert found.fitted == (name,)
        assert getattr(found.device, name) == pytest.approx(TRUTH[name], rel=1e-6)
        assert "intervals rest on 2% of noise" in found.warnings[0]

    def test_repeats_of_one_total_are_one_number(self) -> None:
        found = calibrate({"shape": ["open_lm_1b"] * 3, "total_s": [3.6, 3.5, 3.7]}, A100)
        assert found.fitted == ("launch_s",)
        assert found.residuals[0].predicted_s == pytest.approx(3.6, rel=1e-3)

    def test_prefill_and_decode_fix_compute_and_bandwidth(self) -> None:
        truth = with_numbers(A100, compute_fraction=0.41, bandwidth_fraction=0.55)
        found = calibrate(measure(truth, [("open_lm_7b", Workload(prompt_tokens=2000), "graph")]), A100)
        assert found.fitted == ("compute_fraction", "bandwidth_fraction")
        assert found.device.compute_fraction == pytest.approx(0.41, rel=1e-4)

    def test_a_device_without_overheads_can_get_them(self) -> None:
        bare = with_numbers(A100, launch_s=0.0, step_s=0.0)
        found = calibrate(MORPH, bare)
        assert found.fitted == ("launch_s", "step_s")
        assert found.device.launch_s == pytest.approx(calibrate(MORPH, A100).device.launch_s, rel=1e-3)

    def test_times_that_no_peak_allows_are_said(self) -> None:
        found = calibrate({"shape": ["open_lm_7b"], "total_s": [1.0]}, A100, engine="graph")
        assert found.device.bandwidth_fraction == pytest.approx(1.0, abs=1e-3)
        assert any("limit of 1" in w for w in found.warnings)
        assert any("off; another engine" in w for w in found.warnings)

    def test_a_shape_beyond_the_memory_is_said(self) -> None:
        found = calibrate({"shape": ["opt-13b"], "total_s": [60.0], "dtype": "fp32"}, A100)
        assert any("row 1 (opt-13b) needs 52." in w and "42.9 GB" in w for w in found.warnings)


class TestNamed:
    def test_named_numbers_are_fitted_alone(self) -> None:
        found = calibrate(MORPH, A100, fit=("launch_s",))
        assert found.fitted == ("launch_s",)
        assert found.device.step_s == A100.step_s

    @pytest.mark.parametrize(
        ("table", "fit", "reason"),
        [
            ({"shape": ["open_lm_1b"] * 2, "total_s": [3.6, 3.7]}, ("launch_s", "step_s"), "every row has n_layers=24"),
            ({"shape": ["open_lm_1b"], "total_s": [3.6]}, ("launch_s", "step_s"), "another depth"),
            (MORPH, ("compute_fraction",), "hardly changes any time"),
            (MORPH, ("launch_s", "step_s", "bandwidth_fraction"), "bandwidth_fraction hardly changes"),
        ],
    )
    def test_what_cannot_be_identified_is_refused(self, table: Any, fit: tuple[str, ...], reason: str) -> None:
        with pytest.raises(DeviceError, match=reason):
            calibrate(table, A100, fit=fit)

    def test_unknown_names(self) -> None:
        with pytest.raises(DeviceError, match="did you mean 'launch_s'"):
            calibrate(MORPH, A100, fit=("lanch_s",))
        with pytest.raises(DeviceError, match="fit names nothing"):
            calibrate(MORPH, A100, fit=())


class TestTables:
    def test_shape_columns_and_cells_that_tables_mangle(self) -> None:
        """A blank makes whole numbers floats; fields may replace a preset's; a total counts where it stands alone."""
        frame = pd.DataFrame(
            {
                "d_model": [2048, 3072],
                "n_layers": [24.0, 12.0],
                "n_heads": [16, 16],
                "vocab_size": [50432, 50432],
                "tied": [0, 0],
                "batch": [1, None],
                "total_s": [3.61, 1.96],
            }
        )
        named = calibrate(MORPH, A100)
        assert calibrate(frame, A100).device.launch_s == pytest.approx(named.device.launch_s, rel=1e-6)
        mixed = {"shape": ["open_lm_1b", "open_lm_1b"], "n_layers": [None, 12], "total_s": [3.61, None]}
        mixed |= {"prefill_s": [None, 0.01], "decode_s": [None, 1.9]}
        assert [(r.row, r.phase) for r in calibrate(mixed, A100).residuals] == [
            (1, "total"),
            (2, "prefill"),
            (2, "decode"),
        ]

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_files(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"measured{suffix}"
        frame = pd.DataFrame({**MORPH, "engine": ["eager", "eager"]})
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix == ".csv":
            path.write_text("# an A100, Transformers\n" + frame.to_csv(index=False), encoding="utf-8")
        else:
            frame.to_json(path, orient="records", lines=True)
        found = calibrate(read_measurements(path), A100)
        assert found.device.launch_s == calibrate(MORPH, A100).device.launch_s
        save_device(found.device, tmp_path / "device.toml")
        assert load_device(tmp_path / "device.toml") == found.device

    def test_files_that_hold_no_table(self, tmp_path: Path) -> None:
        for name, content, message in (
            ("a.txt", b"x", "come as .csv"),
            ("empty.csv", b"", "holds no table"),
            ("head.csv", b"shape,total_s\n", "has no rows"),
            ("cut.jsonl", b'{"shape": "open', "holds no table"),
            ("bad.parquet", b"PAR", "holds no table"),
            ("bytes.csv", b"\xff\xfe\x00", "holds no table"),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DeviceError, match=message):
                read_measurements(tmp_path / name)
        with pytest.raises(DeviceError, match="No such file"):
            read_measurements(tmp_path / "none.csv")

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({}, "have no time"),
            ({"shape": ["open_lm_1b"]}, "have no time"),
            ({"shape": [], "total_s": []}, "have no rows"),
            ({"total_s": [1.0], "d_model": [64]}, "no column n_layers, n_heads, vocab_size"),
            ({"shape": ["open_lm_1b"], "total_s": [1.0, 2.0]}, "different lengths"),
            (
                {"shape": ["open_lm_1b", "open_lm_1b"], "total_s": [1.0, 0.0]},
                "row 2: total_s=0.0; wanted",
            ),
            ({"shape": ["open_lm_1b"], "total_s": [-1.0]}, "row 1: total_s=-1.0"),
            ({"shape": ["open_lm_1b"], "total_s": [float("nan")]}, "row 1: no time"),
            ({"shape": ["open_lm_1b"], "total_s": [float("inf")]}, "row 1: total_s=inf"),
            ({"shape": ["open_lm_1b"], "total_s": ["3 s"]}, "row 1: total_s='3 s'"),
            ({"shape": ["open_lm_1c"], "total_s": [1.0]}, "row 1: no shape preset"),
            (
                {"shape": ["open_lm_1b"], "total_s": [1.0], "dtype": ["bf61"]},
                "row 1: unknown dtype 'bf61'",
            ),
            ({"shape": ["open_lm_1b"], "total_s": [1.0], "engine": ["graf"]}, "row 1: unknown engine 'graf'"),
            ({"shape": ["open_lm_1b"], "total_s": [1.0], "batch": [0]}, "row 1: batch=0"),
            ({"shape": ["open_lm_1b"], "total_s": [1.0], "batch": [1.5]}, "row 1: batch=1.5; wanted a whole number"),
            ({"shape": ["open_lm_1b"], "n_layers": [2.5], "total_s": [1.0]}, "row 1: n_layers=2.5"),
            ({"shape": ["open_lm_1b"], "decode_s": [1.0], "new_tokens": [1]}, "row 1: decode_s is not 0"),
            ({"shape": ["gpt2-small"], "total_s": [1.0], "prompt_tokens": [2000]}, "row 1: 2000 prompt"),
        ],
    )
    def test_bad_tables(self, table: Any, message: str) -> None:
        with pytest.raises(DeviceError, match=message):
            calibrate(table, A100)

    def test_a_misspelt_column_is_said(self) -> None:
        found = calibrate(MORPH | {"promt_tokens": [128, 128]}, A100)
        assert "the column 'promt_tokens' is not read; did you mean 'prompt_tokens'?" in found.warnings
        with pytest.raises(DeviceError, match="unknown engine 'graf'"):
            calibrate(MORPH, A100, engine="graf")
