"""Every command as a user runs it: what it prints and writes, and one clear line and exit code 2 for bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lathe.cli import COMMANDS, main
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law

Run = Callable[..., str]
DRAWABLE = find_spec("altair") is not None and find_spec("vl_convert") is not None


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds, in this process; returns what it printed."""

    def call(*arguments: str) -> str:
        main(arguments)
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that the user got wrong; returns its one line on stderr."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert printed.err.startswith("lathe: ")
        assert printed.err.count("\n") == 1, "an error is one line"
        assert "Traceback" not in printed.err
        return printed.err.removeprefix("lathe: ").rstrip()

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def laws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of fitted laws: of the published grid, and of held-out losses with and without shape."""
    folder = tmp_path_factory.mktemp("laws")
    runs = read_runs("morph-2025")
    fit(runs, "width-depth", draws=20).save(folder / "morph.json")
    fit(runs, "width-depth", draws=0).save(folder / "bare.json")
    held_out = runs.assign(loss_kind="held-out")
    fit(held_out, "width-depth", draws=20).save(folder / "shaped.json")
    n, m = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 6), [5.0, 20, 80]))
    loss = 1.8 + 480 * n**-0.35 + 2100 * (n * m) ** -0.37
    fit({"params": n, "tokens": n * m, "loss": loss}, "chinchilla", draws=20).save(folder / "chinchilla.json")
    return folder


@pytest.fixture
def table(here: Path) -> Path:
    """Write a table of runs under names of its own."""
    n, m = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 5), [5.0, 20, 80]))
    lines = [f"{a:.0f},{a * b:.0f},{1.8 + 480 * a**-0.35 + 2100 * (a * b) ** -0.37}" for a, b in zip(n, m, strict=True)]
    path = here / "runs.csv"
    path.write_text("\n".join(["Model Size,D,val", *lines, ""]))
    return path


# Happy paths


def test_fit_prints_writes_and_predicts_the_held_out(run: Run, here: Path) -> None:
    printed = run(
        "fit", "morph-2025", "--form", "width-depth", "--draws", "20", "--hold-out", "size == '1B'", "--out", "law.json"
    )
    for text in (
        "width-depth, fitted to 72 runs (loss, train-run-mean; squares-log)",
        "L = E + A·d^-a + C·n^-c + B·D^-b",
        "± s.e.",
        "leave one out",
        "sizes by size: 80M, 86M",
        "Held out: 4 runs",
        "inside their 90% interval",
        "law: law.json",
    ):
        assert text in printed
    law = Law.load(here / "law.json")
    assert (law.name, law.runs, law.members[0].draws_bp.shape[0]) == ("width-depth", 72, 20)
    assert law.coefficients == fit(read_runs("morph-2025", where="size != '1B'"), "width-depth", draws=0).coefficients


def test_fit_auto_shows_its_ranking(run: Run) -> None:
    printed = run(
        "fit", "morph-2025", "--draws", "0", "--where", "nominal_tokens_per_param == 20", "--folds", "clusters"
    )
    assert "fitted to 35 runs" in printed
    assert "sizes by clusters" in printed
    for form in ("chinchilla-tied", "aspect-free", "width-depth-shared"):
        assert form in printed
    assert "all but proportional to params" in printed


def test_fit_reads_columns_of_other_names(run: Run, table: Path) -> None:
    printed = run(
        "fit", str(table), "--form", "chinchilla", "--draws", "0", "--objective", "huber-log",
        "--columns", "Model Size=params", "D=tokens", "val=loss",
    )  # fmt: skip
    assert "fitted to 15 runs (loss; huber-log)" in printed
    assert "0.35" in printed


def test_fit_of_downstream_error(run: Run, shared_data: Path) -> None:
    folder = str(shared_data / "laws" / "scaling_testbed")
    printed = run(
        "fit", folder, "--form", "error", "--target", "error", "--draws", "0", "--tasks", "17",
        "--validation", "c4_val", "--where", "dataset == 'rpj'",
    )  # fmt: skip
    assert "Err = epsilon - k·exp(-gamma·L)" in printed


@pytest.mark.skipif(not DRAWABLE, reason="drawing needs lathe[report]")
@pytest.mark.parametrize(("suffix", "begins"), [("html", b"<!"), ("png", b"\x89PNG")])
def test_fit_draws(run: Run, here: Path, suffix: str, begins: bytes) -> None:
    plot = f"law.{suffix}"
    hold_out = ["--hold-out", "size == '1B'"] if suffix == "html" else []
    printed = run("fit", "morph-2025", "--form", "width-depth", "--draws", "20", *hold_out, "--plot", plot)
    assert f"plot: {plot}" in printed
    assert (here / plot).read_bytes()[:64].lstrip().lower().startswith(begins.lower())
    assert [p.name for p in here.iterdir()] == [plot]


def test_predict_lays_out_intervals(run: Run, laws: Path) -> None:
    shapes = ("scale_open_lm_1b_v8", "m1b_neox")
    printed = run("predict", "--law", str(laws / "morph.json"), "--shape", *shapes, "--tokens", "29e9")
    for text in (*shapes, "1.669B", "29B", "90% interval", "± new run"):
        assert text in printed


def test_predict_by_tokens_per_param_as_json(run: Run, laws: Path) -> None:
    printed = run(
        "predict", "--law", str(laws / "morph.json"), "--shape", "scale_open_lm_1b_v8",
        "--tokens-per-param", "20", "--level", "0.5", "--json",
    )  # fmt: skip
    row = json.loads(printed)
    assert row["shape"] == "scale_open_lm_1b_v8"
    assert row["tokens"] == 20 * 1668885504
    assert row["low"] < row["loss"] < row["high"]
    assert row["level"] == 0.5
    assert row["extrapolation"] == []


def test_predict_without_draws_says_so(run: Run, laws: Path) -> None:
    law = ("--law", str(laws / "bare.json"))
    assert "no interval" in run("predict", *law, "--shape", "m1b_neox", "--tokens", "29e9")
    assert "low" not in json.loads(run("predict", *law, "--shape", "m1b_neox", "--tokens", "29e9", "--json"))


def test_predict_a_shape_from_a_file(run: Run, laws: Path, here: Path) -> None:
    (here / "mine.toml").write_text(
        'd_model = 2048\nn_layers = 24\nn_heads = 16\nvocab_size = 50432\nnorm = "layernorm"\n'
    )
    printed = run("predict", "--law", str(laws / "morph.json"), "--shape", "mine.toml", "--tokens", "29e9", "--json")
    assert 2.5 < json.loads(printed)["loss"] < 3.5


def test_compare_on_a_split_of_ones_own(run: Run) -> None:
    printed = run(
        "compare", "morph-2025", "--forms", "chinchilla-tied", "width-depth", "--fit-where", "set_b",
        "--focus", "size == '1B'",
    )  # fmt: skip
    lines = [line.split() for line in printed.splitlines()]
    row = next(line for line in lines if "width-depth" in line)
    assert "0.00017768" in row
    assert row[-1] == "1"
    assert "Errors and ranks over size == '1B'; MSE and R² over all 76 runs" in printed


def test_compare_leaves_sizes_out_by_default(run: Run) -> None:
    printed = run("compare", "morph-2025", "--forms", "width-depth", "--folds", "clusters")
    assert "all but one of 6 sizes (76 runs)" in printed
    assert "0.00011643" in printed


def test_compare_repeats_the_published_fits(run: Run) -> None:
    printed = run("compare", "morph-2025", "--as-published")
    for text in ("0.98244", "0.11651", "0.0032962", "0.00055356", "0.00048715", "0.69/0.90/0.92/1.15"):
        assert text in printed
    assert "A aspect: A -16248" in printed


def test_optimal_splits_a_budget(run: Run, laws: Path) -> None:
    printed = run("optimal", "--law", str(laws / "chinchilla.json"), "--flops", "1e21")
    assert "params" in printed
    assert "(90%: " in printed
    shaped = run("optimal", "--law", str(laws / "shaped.json"), "--flops", "3e19", "--aspect", "64")
    assert "width × depth" in shaped


def test_optimal_over_a_whole_life(run: Run, laws: Path) -> None:
    printed = run(
        "optimal", "--law", str(laws / "chinchilla.json"), "--target-loss", "2.6", "--inference-tokens", "1e12"
    )
    assert "serving FLOPs" in printed
    assert "params, were nothing served" in printed


def test_shapes_and_shape(run: Run) -> None:
    assert "mobilellm-125m" in run("shapes", "--family", "mobilellm")
    assert "scale_open_lm_1b_v8" in run("shapes")
    assert "FLOPs" in run("shape", "mobilellm-125m", "--context", "4096")
    assert json.loads(run("shape", "llama-2-7b", "--json"))["params"] == 6_738_415_616


# Help


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"] if command is None else [command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    if command is None:
        assert all(name in printed for name in COMMANDS)
    else:
        assert f"Example: lathe {command}" in printed


def test_lathe_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Example: lathe fit" in capsys.readouterr().out


# Bad input: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "morph-2025", "--form", "chinchila"], "no law form is called 'chinchila'; did you mean 'chinchilla'"),
        (["fit", "morph-2026"], "no published table or file is called 'morph-2026'; did you mean 'morph-2025'?"),
        (["fit", "none.csv"], "no file or folder none.csv"),
        (["fit", "notes.txt"], "notes.txt is a .txt file; wanted .jsonl, .csv, .parquet or a testbed's folder"),
        (["fit", "empty.csv"], "empty.csv is empty"),
        (["fit", "header.csv"], "header.csv has no rows"),
        (["fit", "one.csv"], "no form fits these runs"),
        (["fit", "cut.jsonl"], "cut.jsonl, line 2 is not whole JSON"),
        (["fit", "infinite.csv"], "infinite.csv: row 1, column 'loss' is inf; wanted a finite number"),
        (["fit", "picture.parquet"], "picture.parquet is not a parquet file"),
        (
            ["fit", "morph-2025", "--where", "siez == '1B'"],
            "names 'siez', no column of morph-2025; did you mean 'size'",
        ),
        (["fit", "morph-2025", "--where", "size == '2B'"], "keeps none of the 76 rows of morph-2025"),
        (["fit", "morph-2025", "--hold-out", "params > 0"], "--hold-out 'params > 0' leaves no run to fit"),
        (["fit", "morph-2025", "--columns", "params"], "--columns 'params' is no THEIRS=OURS"),
        (["fit", "morph-2025", "--columns", "N=params"], "morph-2025 has no column 'N' to read as 'params'"),
        (["fit", "morph-2025", "--form", "error"], "column"),
        (["fit", "morph-2025", "--draws", "-5"], "draws=-5; give 0 for none, or 2 or more"),
        (["fit", "morph-2025", "--form", "width-depth", "--where", "name in ['80M_v1', '1B_v1']"], "4 runs cannot fix"),
        (["compare", "morph-2025", "--forms", "aspekt"], "no law form is called 'aspekt'; did you mean 'aspect'"),
        (["compare", "table.csv", "--as-published"], "no column 'set_a', 'set_b', 'size'"),
        (["shapes", "--family", "mobilelm"], "no family of shapes is called 'mobilelm'; did you mean 'mobilellm'?"),
        (["shape", "mobilellm-125"], "no shape preset is called 'mobilellm-125'; did you mean 'mobilellm-125m'"),
    ],
)
def test_bad_input(fail: Run, here: Path, arguments: list[str], message: str) -> None:
    (here / "notes.txt").write_text("loss 3")
    (here / "empty.csv").write_text("")
    (here / "header.csv").write_text("params,tokens,loss\n")
    (here / "one.csv").write_text("params,tokens,loss\n1e8,2e9,3.5\n")
    (here / "table.csv").write_text("params,tokens,loss\n1e8,2e9,3.5\n2e8,4e9,3.2\n")
    (here / "infinite.csv").write_text("params,tokens,loss\n1e8,2e9,inf\n2e8,4e9,3.2\n")
    (here / "cut.jsonl").write_text('{"params": 1e8, "tokens": 2e9, "loss": 3.5}\n{"params": 1e8, "tok')
    (here / "picture.parquet").write_bytes(b"\x89PNG")
    before = sorted(here.iterdir())
    out = ["--out", "law.json"] if arguments[0] == "fit" else []
    assert message in fail(*arguments, *out)
    assert sorted(here.iterdir()) == before


LAW_COMMANDS = (
    ["predict", "--shape", "m1b_neox", "--tokens", "29e9"],
    ["optimal", "--flops", "1e21"],
)


@pytest.mark.parametrize("command", LAW_COMMANDS)
def test_bad_law_files(fail: Run, here: Path, laws: Path, command: list[str]) -> None:
    text = (laws / "morph.json").read_text()
    files = {
        "cut.json": (text[: len(text) // 2], "not JSON"),
        "newer.json": (text.replace('"version": 1', '"version": 9', 1), "written by a newer Lathe (law version 9"),
        "other.json": ('{"lathe": "shape", "version": 1}', "holds a shape, and a law was wanted"),
        "law.txt": (text, "the name should end in .json or .toml"),
    }
    for name, (content, message) in files.items():
        (here / name).write_text(content)
        found = fail(*command, "--law", name)
        assert name in found
        assert message in found
    assert "none.json: cannot be read: No such file" in fail(*command, "--law", "none.json")


@pytest.mark.parametrize("tokens", [[], ["--tokens", "1e9", "--tokens-per-param", "20"]])
def test_predict_wants_tokens_one_way(fail: Run, laws: Path, tokens: list[str]) -> None:
    found = fail("predict", "--law", str(laws / "morph.json"), "--shape", "m1b_neox", *tokens)
    assert found == "give either --tokens or --tokens-per-param"


def test_predict_refuses_what_no_run_varied(fail: Run, run: Run, laws: Path) -> None:
    ask = ("predict", "--law", str(laws / "morph.json"), "--shape", "mobilellm-125m", "--tokens", "1e10")
    assert "vocab_size = 32000, but every run this law was fit on has vocab_size = 50432" in fail(*ask)
    assert "mobilellm-125m" in run(*ask, "--assume", "vocab_size", "tied", "kv_ratio")
    assert "names no held axis" in fail(*ask, "--assume", "vocab")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--flops", "1e21", "--target-loss", "2.6"], ["--target-loss", "2.6"], ["--inference-tokens", "1e12"]],
)
def test_optimal_wants_one_question(fail: Run, laws: Path, arguments: list[str]) -> None:
    found = fail("optimal", "--law", str(laws / "chinchilla.json"), *arguments)
    assert found == "give either --flops, or --target-loss together with --inference-tokens"


def test_optimal_refuses_run_means_and_unreachable_losses(fail: Run, laws: Path) -> None:
    assert "averaged over each run" in fail("optimal", "--law", str(laws / "morph.json"), "--flops", "1e21")
    life = ("--target-loss", "1.2", "--inference-tokens", "1e12")
    assert "target_loss=1.2 is below" in fail("optimal", "--law", str(laws / "chinchilla.json"), *life)
    assert "makes no sense" in fail("optimal", "--law", str(laws / "chinchilla.json"), "--flops", "-1")


@pytest.mark.skipif(not DRAWABLE, reason="drawing needs lathe[report]")
@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("law.gif", "law.gif is a .gif file; a chart can be written as .html, .png, .svg, .pdf"),
        ("law", "law has no suffix"),
        ("absent/law.svg", "there is no folder absent"),
    ],
)
def test_plots_that_cannot_be_are_refused_before_the_fit(fail: Run, here: Path, plot: str, message: str) -> None:
    assert message in fail("fit", "morph-2025", "--draws", "0", "--plot", plot, "--out", "law.json")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_plots_without_the_extra_name_the_command(
    fail: Run, here: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = fail("fit", "morph-2025", "--draws", "0", "--plot", "law.png", "--out", "law.json")
    assert 'run: pip install "lathe[report]"' in found
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("out", ["law.txt", "absent/law.json"])
def test_a_law_that_cannot_be_written_is_refused_before_the_fit(
    capsys: pytest.CaptureFixture[str], here: Path, out: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "morph-2025", "--form", "chinchilla", "--draws", "0", "--out", out])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert out.partition("/")[0] in printed.err
    assert printed.out == "", "it would have been known before the fit"
    assert list(here.iterdir()) == []


def test_published_fits_of_a_table_without_sizes(fail: Run, here: Path) -> None:
    (here / "t.csv").write_text("params,tokens,loss,set_a,set_b\n1e8,2e9,3.5,1,1\n2e8,4e9,3.2,1,1\n")
    assert "this table has no column 'size'" in fail("compare", "t.csv", "--as-published")


# As processes


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "lathe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


def test_as_a_process(tmp_path: Path) -> None:
    done = start("fit", "morph-2025", "--form", "chinchilla", "--draws", "10", "--out", "law.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    done = start("predict", "--law", "law.json", "--shape", "m1b_neox", "--tokens", "29e9", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["law.json"]


def test_a_failing_process_exits_2(tmp_path: Path) -> None:
    done = start("fit", "morph-2025", "--form", "chinchila", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    wanted = "lathe: no law form is called 'chinchila'; did you mean 'chinchilla'"
    assert done.stderr.startswith(wanted)
    assert start("fitt", "morph-2025", cwd=tmp_path).returncode == 2
