"""Rows on disk, calibrating on them, comparing, sweeping, and the commands."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from lathe.bench import runner
from lathe.bench.compare import compare
from lathe.bench.job import Job
from lathe.bench.rows import Measurement, open_rows, write_row
from lathe.bench.runner import list_wanted, run_all
from lathe.bench.sweeps import SAME_PARAMS, SWEEPS, sweep
from lathe.cli import main
from lathe.errors import CodecError, DeviceError, ShapeError, WorkloadError
from lathe.latency.calibrate import calibrate
from lathe.latency.measurements import parse_measurements, read_measurements
from lathe.latency.roofline import predict_latency
from lathe.presets.devices import load_device, save_device
from lathe.presets.shapes import load_shape
from lathe.report.latency_tables import measured_table
from lathe.shape import Shape
from lathe.workload import PREDICTED_AS, Latency, Workload

A100 = load_device("a100-40gb")
BASE = Shape.of(d_model=512, n_layers=8, n_heads=8, n_kv_heads=4, vocab_size=8192)
TINY = {"d_model": 32, "n_layers": 4, "n_heads": 2, "d_ff": 64, "vocab_size": 96}
CHAT = Workload()


def plant(name: str, *, engine: str = "eager", backend: str = "lathe", work: Workload = CHAT, slow: float = 1.0):
    """Measure what an A100 is predicted to take, times `slow`."""
    shape = load_shape(name)
    found = predict_latency(shape, device=A100, workload=work, engine=PREDICTED_AS[engine])
    times = {"prefill_s": found.prefill_s * slow, "decode_s": found.decode_s * slow}
    p95 = times | {"total_s": found.total_s * slow}
    latency = Latency(
        **times, weight_bytes=1.0, kv_bytes=1.0, activation_bytes=0.0, tokens_per_s=1.0, engine=engine,
        backend=backend, spread=0.01, runs=6, p95=p95, warmup_runs=0, steady=True, prepare_s=0.0,
        conditions={"device": "planted", "threads": "1"},
    )  # fmt: skip
    return Measurement(name=name, shape=shape, workload=work, latency=latency)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Measure nothing, and note what would have been."""
    made: list[Job] = []

    def instant(job: Job, *, backend: str, runs: int | None, threads: int | None) -> Latency:
        made.append(job)
        conditions = {"device": runner.name_device(job.device), "threads": str(threads)}
        return Latency(
            prefill_s=1.0, decode_s=2.0, weight_bytes=1.0, kv_bytes=1.0, activation_bytes=1.0, tokens_per_s=1.0,
            engine=job.engine, backend=backend, runs=6, conditions=conditions,
        )  # fmt: skip

    monkeypatch.setattr(runner, "measure_job", instant)
    return made


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


class TestFile:
    def test_reads_back_what_it_writes(self, tmp_path: Path) -> None:
        rows = [plant("open_lm_1b"), plant("gpt2-small", engine="compile", backend="hf")]
        for row in rows:
            write_row(row, tmp_path / "m.jsonl")
        assert open_rows(tmp_path / "m.jsonl") == (rows, None)
        assert open_rows(tmp_path / "none.jsonl") == ([], None)

    def test_calibrating_reads_it(self, tmp_path: Path) -> None:
        """The planted device comes back, and `compile` counts as a graph."""
        long = Workload(batch=4, prompt_tokens=4000, new_tokens=64)
        for name in ("scale_open_lm_80m_v1", "open_lm_1b", "open_lm_7b"):
            write_row(plant(name), tmp_path / "m.jsonl")
            write_row(plant(name, engine="compile", work=long), tmp_path / "m.jsonl")
        table = read_measurements(tmp_path / "m.jsonl")
        assert {m.engine for m in parse_measurements(table)[0]} == {"eager", "graph"}
        found = calibrate(table, load_device("h100"))
        own = load_device("h100")
        for name, planted in (("launch_s", A100.launch_s), ("step_s", A100.step_s)):
            assert getattr(found.device, name) == pytest.approx(planted, rel=0.01)
        rate = found.device.bandwidth_fraction * own.bytes_per_s
        assert rate == pytest.approx(A100.bandwidth_fraction * A100.bytes_per_s, rel=0.01)
        rows, _ = open_rows(tmp_path / "m.jsonl")
        assert compare(rows, found.device).mean_error() < 0.01

    def test_several_backends_are_said(self, tmp_path: Path) -> None:
        for backend in ("lathe", "hf"):
            write_row(plant("open_lm_1b", backend=backend), tmp_path / "m.jsonl")
        warnings = parse_measurements(read_measurements(tmp_path / "m.jsonl"))[1]
        assert warnings == [
            "rows come from several backends (hf, lathe), each with its own overheads; calibrate on one"
        ]

    @pytest.mark.parametrize("cut", [1, 40, 600])
    def test_a_line_cut_short_is_dropped(self, tmp_path: Path, cut: int) -> None:
        path = tmp_path / "m.jsonl"
        write_row(plant("open_lm_1b"), path)
        whole = path.read_bytes()
        write_row(plant("gpt2-small"), path)
        path.write_bytes(path.read_bytes()[:-cut])
        rows, warning = open_rows(path)
        assert [row.name for row in rows] == ["open_lm_1b"]
        assert warning is not None
        assert "cut short" in warning
        assert path.read_bytes() == whole

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"{nonsense}", "line 1: not JSON"),
            (b"[1]", "line 1: no measurement"),
            (b'{"d_model": 8}', "prefill_s, decode_s, engine, backend is missing"),
        ],
    )
    def test_whole_lines_that_are_no_measurement(self, tmp_path: Path, line: bytes, message: str) -> None:
        (tmp_path / "m.jsonl").write_bytes(line + b"\n")
        with pytest.raises(DeviceError, match=message):
            open_rows(tmp_path / "m.jsonl")

    def test_names_and_places(self, tmp_path: Path) -> None:
        with pytest.raises(CodecError, match=r"should end in \.jsonl"):
            open_rows(tmp_path / "m.csv")
        with pytest.raises(CodecError, match="no folder"):
            open_rows(tmp_path / "none" / "m.jsonl")
        with pytest.raises(DeviceError, match="cannot be written"):
            write_row(plant("open_lm_1b"), tmp_path)


class TestCompare:
    def test_errors_and_ranks(self) -> None:
        names = ("scale_open_lm_80m_v1", "open_lm_1b", "open_lm_7b")
        found = compare([plant(name, slow=1.25) for name in names], A100)
        assert found.errors("total_s") == pytest.approx([-0.2] * 3)
        assert found.mean_error() == pytest.approx(0.2)
        assert found.spearman == pytest.approx(1.0)
        assert compare([plant("open_lm_1b")], A100).spearman is None


class TestDoubts:
    def test_disturbed_and_unsettled_rows_are_marked(self) -> None:
        calm, rough = plant("open_lm_1b"), plant("gpt2-small")
        disturbed = dataclasses.replace(rough, latency=dataclasses.replace(rough.latency, spread=0.3))
        restless = dataclasses.replace(calm, latency=dataclasses.replace(calm.latency, steady=False))
        console = Console(width=200)
        with console.capture() as capture:
            console.print(measured_table([calm, disturbed, restless, restless]))
        notes = [line for line in capture.get().splitlines() if line.startswith("!")]
        assert len(notes) == 2
        assert "gpt2-small (lathe eager) was disturbed: its p95 is 30% above" in notes[0]
        assert "open_lm_1b (lathe eager) never settled" in notes[1]
        assert all(note.rstrip().endswith("measure it --again") for note in notes)
        assert "planted, 1 thread\n" in "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def test_calibrating_warns_of_what_never_settled(self, tmp_path: Path) -> None:
        row = plant("open_lm_1b")
        write_row(row, tmp_path / "m.jsonl")
        write_row(
            dataclasses.replace(row, latency=dataclasses.replace(row.latency, steady=False)), tmp_path / "m.jsonl"
        )
        warnings = parse_measurements(read_measurements(tmp_path / "m.jsonl"))[1]
        assert len(warnings) == 1
        assert warnings[0].startswith("row 2 never settled")


class TestRunner:
    def test_what_is_there_is_not_measured_again(self, tiny: Path, tmp_path: Path, quick: list[Job]) -> None:
        out = tmp_path / "m.jsonl"
        wanted, _ = list_wanted([tiny], CHAT, engines=("eager", "compile"), threads=1)
        first = run_all(wanted, out=out)
        assert len(quick) == 2
        assert run_all(wanted, known=open_rows(out)[0], out=out) == first
        assert len(quick) == 2
        more, _ = list_wanted([tiny], dataclasses.replace(CHAT, batch=2), threads=1)
        other, _ = list_wanted([tiny], CHAT, threads=2)
        run_all(more + other, known=open_rows(out)[0], out=out)
        assert len(quick) == 4
        assert len(open_rows(out)[0]) == 4

    def test_what_is_measured_again_replaces_what_was_there(self, tiny: Path, tmp_path: Path, quick: list[Job]) -> None:
        out = tmp_path / "m.jsonl"
        wanted, _ = list_wanted([tiny], CHAT, engines=("eager", "compile"), threads=1)
        run_all(wanted, out=out)
        other = b'{"mine": 1, ' + out.read_bytes().splitlines(keepends=True)[1][1:]
        out.write_bytes(out.read_bytes().splitlines(keepends=True)[0] + other)
        run_all(wanted[:1], known=open_rows(out)[0], again=True, out=out)
        assert len(quick) == 3
        assert [row.latency.engine for row in open_rows(out)[0]] == ["compile", "eager"]
        assert out.read_bytes().startswith(other), "other rows stay as they are"
        assert list(tmp_path.glob("m*")) == [out]

    def test_each_row_is_kept_before_the_next_is_made(
        self, tiny: Path, tmp_path: Path, quick: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, (wanted, _) = tmp_path / "m.jsonl", list_wanted([tiny], CHAT, sweeps=("depth",), threads=1)
        instant = runner.measure_job

        def killed(job: Job, **given: object) -> Latency:
            if len(quick) == 2:
                raise KeyboardInterrupt
            return instant(job, **given)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(runner, "measure_job", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(wanted, out=out)
        assert [row.shape for row in open_rows(out)[0]] == [one.job.shape for one in wanted[:2]]

    def test_everything_is_checked_before_anything_is_measured(self, tiny: Path, quick: list[Job]) -> None:
        with pytest.raises(WorkloadError, match="has no engine 'graf'"):
            list_wanted([tiny], CHAT, engines=("eager", "graf"))
        with pytest.raises(WorkloadError, match="unknown backend"):
            list_wanted([tiny], CHAT, backends=("lathe", "tensorrt"))
        assert quick == []

    def test_sweeps_that_meet_are_measured_once(self, tiny: Path) -> None:
        wanted, notes = list_wanted([tiny], CHAT, sweeps=("depth", "batch"), threads=1)
        assert notes == []
        assert len(wanted) == len({one.key for one in wanted}) == 4 + 6 - 1

    def test_a_sweep_without_room_is_left_out(self, tmp_path: Path) -> None:
        odd = tmp_path / "odd.json"
        odd.write_text(json.dumps({**TINY, "d_model": 24, "d_head": 12}))
        wanted, notes = list_wanted([odd], CHAT, sweeps=("head-dim", "depth"), threads=1)
        assert len(wanted) == 4
        assert len(notes) == 1
        with pytest.raises(
            ShapeError, match="nothing to sweep in head-dim: fewer than two of the head dims 32, 64, 128"
        ):
            list_wanted([odd], CHAT, sweeps=("head-dim",), threads=1)


class TestSweeps:
    def test_each_varies_what_it_says(self) -> None:
        families = {kind: sweep(kind, "base", BASE, CHAT) for kind in SWEEPS}
        shapes = {kind: [shape for _, shape, _ in family] for kind, family in families.items()}
        assert [s.n_layers for s in shapes["depth"]] == [2, 4, 8, 16]
        assert [s.d_model for s in shapes["width"]] == [128, 256, 512, 1024]
        assert {s.d_ff / s.d_model for s in shapes["width"]} == {BASE.d_ff / BASE.d_model}
        assert [s.d_head for s in shapes["head-dim"]] == [32, 64, 128, 256]
        assert {s.params for s in shapes["head-dim"]} == {BASE.params}
        assert [work.batch for _, _, work in families["batch"]] == [1, 2, 4, 8, 16, 32]
        assert all(shape == BASE for shape in shapes["batch"])

    @pytest.mark.parametrize("name", ["m1b_neox", "mobilellm-125m-ls", "gpt2-small"])
    def test_equal_params_from_wide_to_deep(self, name: str) -> None:
        base = load_shape(name)
        found = [shape for _, shape, _ in sweep("iso-params", name, base, CHAT)]
        assert len(found) >= 4
        assert base in found
        assert all(abs(s.params / base.params - 1) <= SAME_PARAMS for s in found)
        assert [s.d_model for s in found] == sorted((s.d_model for s in found), reverse=True)
        assert [s.n_layers for s in found] == sorted({s.n_layers for s in found})

    def test_nothing_to_sweep(self) -> None:
        odd = Shape.of(d_model=24, n_layers=2, n_heads=2, d_head=12, vocab_size=64)
        with pytest.raises(ShapeError, match="leaves nothing to sweep in head-dim"):
            sweep("head-dim", "odd", odd, CHAT)
        with pytest.raises(WorkloadError, match="unknown sweep 'dept'; did you mean 'depth'"):
            sweep("dept", "base", BASE, CHAT)


class TestCommands:
    def test_measure_calibrate_compare(
        self, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lathe.bench.probe.SECONDS", 0.005)
        out, device = str(tmp_path / "m.jsonl"), str(tmp_path / "cpu.toml")
        asked = [
            "measure", str(tiny), "--sweep", "depth", "--prompt-tokens", "4", "--new-tokens", "3", "--dtype", "fp32",
            "--threads", "1", "--runs", "1", "--out", out,
        ]  # fmt: skip
        main(["probe", "--threads", "1", "--out", device])
        probed = load_device(device)
        assert probed.family == "cpu"
        assert probed.origins["bytes_per_s"].kind == "measured"
        main(asked)
        printed = capsys.readouterr().out
        assert "tiny, 8 layers" in printed
        assert f"measurements: {out}" in printed
        before = Path(out).read_bytes()
        calibrated = str(tmp_path / "calibrated.toml")
        main(["calibrate", out, "--device", device, "--out", calibrated])
        main([*asked, "--compare", calibrated])
        assert Path(out).read_bytes() == before
        assert "mean absolute error:" in capsys.readouterr().out

    def test_a_device_to_compare_with_is_read_first(self, tiny: Path, quick: list[Job], tmp_path: Path) -> None:
        save_device(A100, tmp_path / "a100.toml")
        with pytest.raises(SystemExit) as caught:
            main(["measure", str(tiny), "--compare", "a1000"])
        assert caught.value.code == 2
        assert quick == []
