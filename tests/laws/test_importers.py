"""Tests of reading runs: the published tables to their known figures, and every way a source can be wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from lathe.errors import MissingExtraError, RunsError
from lathe.laws.importers import list_published, read_runs
from lathe.laws.testbed import TASK_SETS
from lathe.runs import Run
from lathe.shape import Shape

MORPH = read_runs("morph-2025")
CHINCHILLA = {"Model Size": "params", "Training FLOP": "flops"}
TABLE = "params,tokens,loss,size\n1e6,2e7,4.0,small\n2e6,4e7,3.5,large\n"


@pytest.fixture
def testbed(shared_data: Path) -> Path:
    return shared_data / "laws" / "scaling_testbed"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def refuse(source: str | Path, *words: str, **options: Any) -> None:
    with pytest.raises(RunsError) as caught:
        read_runs(source, **options)
    for word in words:
        assert word in str(caught.value)


# ---- published tables


def test_morph_is_listed_and_whole() -> None:
    assert list_published() == ["morph-2025"]
    assert len(MORPH) == 76
    assert (int(MORPH.set_a.sum()), int(MORPH.set_b.sum())) == (24, 27)
    assert (MORPH.set_b | ~MORPH.set_a).all()
    assert len(MORPH.groupby(["d_model", "n_layers"])) == 35
    assert set(MORPH.loss_kind) == {"train-run-mean"}
    assert dict(MORPH.nominal_tokens_per_param.value_counts()) == {20.0: 35, 40.0: 23, 160.0: 18}
    wide = MORPH[MORPH.name == "1B_v6"].iloc[0]
    assert (wide.d_model, wide.n_layers, wide.params, wide.loss) == (2816, 12, 1_443_304_192, 2.9326)


def test_morph_shapes_count_to_their_params() -> None:
    for run in MORPH.drop_duplicates("params").itertuples():
        shape = Shape.of(
            d_model=run.d_model,
            n_layers=run.n_layers,
            n_heads=run.n_heads,
            vocab_size=run.vocab_size,
            norm="layernorm-gain",
        )
        assert (shape.params, shape.non_embedding_params) == (run.params, run.non_embedding_params)
        assert (shape.d_ff, shape.n_kv_heads) == (run.d_ff, run.n_kv_heads)


def test_morph_agrees_with_the_authors_figures(shared_data: Path) -> None:
    theirs = read_runs(
        shared_data / "laws" / "morph_grid.csv",
        columns={
            "variant": "name",
            "ffn_dim": "d_ff",
            "vocab": "vocab_size",
            "token_multiple": "nominal_tokens_per_param",
        },
    )
    shared = [name for name in MORPH.columns if name in theirs.columns]
    assert {"name", "size", "params", "tokens", "loss", "d_ff", "n_heads", "aspect"} <= set(shared)
    pd.testing.assert_frame_equal(MORPH[shared], theirs[shared])
    assert MORPH.set_a.tolist() == (theirs.all_20N_data_fit == 1).tolist()
    assert MORPH.set_b.tolist() == (theirs.all_20N_partial_160N_data_fit == 1).tolist()
    final_norm = MORPH.non_embedding_params - theirs.params_nonemb
    assert final_norm.tolist() == MORPH.d_model.tolist()


def test_chinchilla_points(shared_data: Path) -> None:
    runs = read_runs(shared_data / "laws" / "chinchilla_points.csv", columns=CHINCHILLA)
    assert len(runs) == 245
    assert runs.tokens[0] == runs.flops[0] / (6 * runs.params[0])
    assert "size" not in runs.columns
    # the objective published for the best fit to the 240 points of lowest loss
    kept = runs.nsmallest(240, "loss")
    loss = 1.8172181 + 477.826 * kept.params**-0.3473105 + 2143.417 * kept.tokens**-0.3671724
    residual = np.abs(np.log(loss) - np.log(kept.loss))
    huber = np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4))
    assert huber.sum() == pytest.approx(0.00101827401780, rel=1e-6)


# ---- the scaling testbed


def test_testbed_is_whole(testbed: Path) -> None:
    runs = read_runs(testbed)
    assert len(runs) == 69
    assert dict(runs["dataset"].value_counts()) == {"c4_original": 34, "rpj": 35}
    assert set(runs["size"]) == {"11M", "79M", "154M", "411M", "1.4B", "6.9B"}
    assert runs.tokens_per_param.tolist() == runs.nominal_tokens_per_param.tolist()
    assert set(runs.loss_kind) == {"held-out"}
    assert set(runs.vocab_size) == {50432}
    assert len([name for name in runs.columns if name.startswith("loss_") and name[:7] != "loss_se"]) == 8 + 1
    small = runs[runs.name == "c4_original-d=96_l=8_h=4-1.0"].iloc[0]
    assert (small.d_model, small.n_layers, small.n_heads, small.d_ff) == (96, 8, 4, 256)
    assert (small.params, small.non_embedding_params) == (10_569_312, 10_569_312 - 2 * 50432 * 96)
    big = runs[runs.name == "rpj-open_lm_7b-1.0"].iloc[0]
    assert (big.d_model, big.n_layers, big.n_heads, big.tokens) == (4096, 32, 32, 137_788_211_200)
    c4 = runs[runs.name == "c4_original-d=1024_l=24_h=8-0.25"].iloc[0]
    assert c4.loss == c4.loss_c4_val == 3.5279492850157737
    assert c4.loss_se == pytest.approx((3.53053282244497 - 3.525283367304321) / 3.92, rel=1e-4)


def test_testbed_shapes_count_to_their_params(testbed: Path) -> None:
    for run in read_runs(testbed).drop_duplicates("params").itertuples():
        shape = Shape.of(
            d_model=run.d_model,
            n_layers=run.n_layers,
            n_heads=run.n_heads,
            vocab_size=run.vocab_size,
            norm="layernorm-gain",
        )
        assert (shape.params, shape.non_embedding_params) == (run.params, run.non_embedding_params)


@pytest.mark.parametrize(
    ("dataset", "law", "error_law"),
    [
        ("c4_original", (113.69, 189.52, 0.2425, 1.5083), (2.0789, 0.7561, 0.8497)),
        ("rpj", (166.21, 366.69, 0.2729, 1.8366), (2.2065, 0.7146, 0.8570)),
    ],
)
def test_testbed_gives_the_authors_laws(
    testbed: Path, dataset: str, law: tuple[float, ...], error_law: tuple[float, ...]
) -> None:
    """Least squares on the rows read gives the published digits: a wrong loss, task or size would change them."""
    runs = read_runs(testbed, where=f"dataset == '{dataset}'")
    fit = runs[
        (runs.tokens_per_param == 20) & runs["size"].isin(["11M", "79M", "154M", "411M"])
        | (runs.tokens_per_param == 320) & (runs["size"] == "11M")
    ]

    def predict_loss(x: Any, a: float, b: float, alpha: float, irreducible: float) -> Any:
        return irreducible + a * x[0] ** -alpha + b * 6 ** (-alpha / 2) * x[1] ** -alpha

    def predict_error(loss: Any, k: float, gamma: float, epsilon: float) -> Any:
        return epsilon - k * np.exp(-gamma * loss)

    x = fit[["params", "tokens"]].to_numpy().T
    found = curve_fit(predict_loss, x, fit.loss.to_numpy(), p0=law)[0]
    assert (*found[:2].round(2), *found[2:].round(4)) == law
    fit = pd.concat([fit, runs[(runs.tokens_per_param == 20) & (runs["size"] == "1.4B")]])
    found = curve_fit(predict_error, fit.loss.to_numpy(), fit.error.to_numpy(), p0=error_law)[0]
    assert tuple(found.round(4)) == error_law
    assert len(fit) == 6


def test_testbed_validation_sets(testbed: Path) -> None:
    runs = read_runs(testbed, validation="paloma_falcon-refinedweb", where="name == 'c4_original-d=1024_l=24_h=8-0.25'")
    assert runs.loss[0] == runs.loss_paloma_falcon_refinedweb[0] == 3.898109313918323
    assert runs.loss_se[0] == runs.loss_se_paloma_falcon_refinedweb[0]
    refuse(testbed, "'c5'", "c4_val", "paloma_ptb", validation="c5")


def test_testbed_task_sets(testbed: Path) -> None:
    assert {key: len(set(names)) for key, names in TASK_SETS.items()} == {"17": 17, "46": 46}
    assert set(TASK_SETS["17"]) < set(TASK_SETS["46"])
    runs = read_runs(testbed)
    assert runs.error.tolist() == runs.error_17.tolist()
    assert read_runs(testbed, tasks="46").error.tolist() == runs.error_46.tolist()
    scores = 1 - (runs.accuracy_copa + runs.accuracy_bigbench_operators + runs.accuracy_winograd) / 3
    for tasks in ("copa,operators, winograd_wsc", ["copa", "bigbench_operators", "winograd"]):
        assert read_runs(testbed, tasks=tasks).error.tolist() == pytest.approx(scores.tolist())
    refuse(testbed, "'kopa'", "named sets are 17, 46", tasks=["copa", "kopa"])
    refuse(testbed, "'18'", tasks="18")


@pytest.fixture
def small_testbed(testbed: Path, tmp_path: Path) -> Path:
    for file in ("models/rpj-d=96_l=8_h=4-1.0.json", "evals/evaluation_rpj-d=96_l=8_h=4-1.0_heavy.json"):
        for name in (file, file.replace("-1.0", "-2.0")):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(testbed / name, tmp_path / name)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    model = json.loads(path.read_text(encoding="utf-8"))
    model["hyperparameters"] |= changes
    path.write_text(json.dumps(model), encoding="utf-8")


def test_testbed_of_one_who_adds_runs(small_testbed: Path) -> None:
    """A run without scores has no error; a set of tasks is never averaged over the rest."""
    next((small_testbed / "evals").glob("*-2.0_*")).unlink()
    runs = read_runs(small_testbed)
    assert runs.error.isna().tolist() == [False, True]
    refuse(small_testbed, "row 2 (rpj-d=96_l=8_h=4-2.0)", "'error'", target="error")


def test_testbed_broken(small_testbed: Path) -> None:
    model = small_testbed / "models" / "rpj-d=96_l=8_h=4-1.0.json"
    whole = model.read_text(encoding="utf-8")
    edit(model, params=20_000_000)
    refuse(small_testbed, model.name, "20000000")
    edit(model, model="mamba_1b")
    refuse(small_testbed, model.name, "'mamba_1b' tells no shape")
    model.write_text(whole[:-100], encoding="utf-8")
    refuse(small_testbed, model.name, "not whole JSON")
    model.write_text("[]", encoding="utf-8")
    refuse(small_testbed, model.name, "wanted one JSON object")
    model.write_text('{"name": "a"}', encoding="utf-8")
    refuse(small_testbed, model.name, "hyperparameters")
    model.write_text(whole, encoding="utf-8")
    shutil.copyfile(
        small_testbed / "evals" / f"evaluation_{model.stem}_heavy.json",
        small_testbed / "evals" / f"evaluation_{model.stem}_light.json",
    )
    refuse(small_testbed, "both evaluate")


def test_folder_of_another_layout(tmp_path: Path) -> None:
    refuse(tmp_path, "models/*.json", str(tmp_path))


# ---- files


def test_runs_jsonl_from_run_words(tmp_path: Path) -> None:
    shape = Shape.of(d_model=64, n_layers=2, n_heads=2, vocab_size=512)
    runs = [
        Run(name="a", shape=shape, tokens=10_000, losses={"c4": 3.5, "wiki": 3.9}, validation="c4", seed=1),
        Run(name="b", shape=shape, tokens=20_000, losses={"c4": 3.4}, validation="c4", accuracies={"copa": 0.5}),
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(run.to_row()) for run in runs) + "\n\n", encoding="utf-8")
    frame = read_runs(path)
    assert frame.name.tolist() == ["a", "b"]
    assert frame.loss.tolist() == [3.5, 3.4]
    assert frame.tied.tolist() == [False, False]
    assert frame.params.tolist() == [shape.params] * 2
    assert frame.seed[0] == 1
    assert np.isnan(frame.seed[1])
    refuse(path, "row 2 (b)", "'loss'", validation="wiki")
    assert read_runs(path, validation="wiki", where="name == 'a'").loss[0] == 3.9


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "params": st.integers(1, 10**12),
                "tokens": st.integers(1, 10**13),
                "loss": st.floats(1e-3, 20),
                "size": st.sampled_from(["80M", "1B", "línea\u2028 two"]),
                "tied": st.booleans(),
                "seed": st.none() | st.integers(0, 2**40),
            }
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: (row["params"], row["tokens"]),
    )
)
def test_jsonl_round_trip(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("runs") / "runs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    frame = read_runs(path)
    for name in ("params", "tokens", "loss", "size", "tied"):
        assert frame[name].tolist() == [row[name] for row in rows]


def test_csv_parquet_and_jsonl_read_alike(table: Path, tmp_path: Path) -> None:
    expected = read_runs(table)
    raw = pd.read_csv(table)
    raw.to_parquet(tmp_path / "runs.parquet")
    raw.to_json(tmp_path / "runs.jsonl", orient="records", lines=True)
    for suffix in (".parquet", ".jsonl"):
        pd.testing.assert_frame_equal(read_runs(tmp_path / f"runs{suffix}"), expected)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.parquet"
    path.write_bytes(b"PAR1")
    refuse(path, "not a parquet file")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"lathe\[data\]"):
        read_runs(path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a.txt", b"", ["is a .txt file", ".parquet"]),
        ("a.json", b"{}", ["is a .json file", ".jsonl"]),
        ("a", b"", ["nameless"]),
        ("a.csv", b"", ["is empty"]),
        ("a.csv", b"params,tokens,loss\n", ["no rows"]),
        ("a.csv", b"params,tokens,loss\n1,2,3\n1,2,3,4\n", ["not a table of comma-separated values"]),
        ("a.csv", b"params,tokens,loss\n1,2,3,4\n", ["not a table of comma-separated values"]),
        ("a.csv", b"\xff\xfe\x00\x80PAR1", ["not a table of comma-separated values"]),
        ("a.csv", b"params,tokens,loss\n1,2,3\n1,2\n", ["row 2", "'loss'", "no value"]),
        ("a.csv", b"params,tokens,loss\n1,2,3\n1,many,3\n", ["row 2", "'tokens'", "'many'"]),
        ("a.csv", b"params,tokens,loss\n1,2,3\n1,2,3\n", ["row 2 equals row 1", "duplicates='drop'"]),
        ("a.jsonl", b"", ["is empty"]),
        ("a.jsonl", b'{"loss": 3}\n{"loss": 3', ["line 2", "not whole JSON"]),
        ("a.jsonl", b"[1]", ["line 1", "wanted one JSON object"]),
        ("a.jsonl", b"\x80\x81", ["not a text file"]),
        ("a.jsonl", b'\n{"params": 1, "tokens": 1, "loss": NaN}', ["row 2", "'loss'"]),
        ("a.jsonl", b'{"params": {"a": 1}, "tokens": 1, "loss": 1}', ["row 1", "'params'", "wanted a number"]),
    ],
)
def test_bad_files(tmp_path: Path, file: str, content: bytes, words: list[str]) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    refuse(path, *words)


def test_missing_sources(tmp_path: Path) -> None:
    refuse("morph-2024", "did you mean 'morph-2025'?")
    refuse("runs.csv", "no file or folder runs.csv")
    refuse(tmp_path / "nowhere", "no file or folder")
    refuse(Path("morph-2025"), "no published table or file")


# ---- options


def test_columns_mapping(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,L,loss\n1e6,2e7,4.0,9\n2e6,4e7,3.5,9\n", encoding="utf-8")
    mapping = {"N": "params", "D": "tokens", "L": "loss"}
    assert read_runs(path, columns=mapping).loss.tolist() == [4.0, 3.5]  # the mapped column replaces theirs
    refuse(path, "no column 'params'", "--columns theirs=params")
    refuse(path, "no column 'M' to read as 'params'", columns={"M": "params"})
    refuse(path, "two columns to 'loss'", columns={**mapping, "loss": "loss"})


def test_duplicates_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE + TABLE.splitlines()[1] + "\n", encoding="utf-8")
    refuse(path, "row 3 equals row 1")
    assert read_runs(path, duplicates="drop")["size"].tolist() == ["small", "large"]


def test_mixed_kinds_of_loss_are_selected(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = TABLE.split()
    path.write_text(f"{lines[0]},loss_kind\n{lines[1]},held-out\n{lines[2]},un-annealed\n", encoding="utf-8")
    refuse(path, "row 2", "'loss_kind'", "--where \"loss_kind == 'held-out'\"")
    assert read_runs(path, where="loss_kind == 'held-out'").loss.tolist() == [4.0]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("size == '1B'", 4),
        ("size != '1B' and tokens_per_param < 30", 31),
        ("size in ['1B', '80M'] and not set_b", 9),
        ("size not in ('1B',)", 72),
        ("set_a | (set_b & (size == '80M'))", 27),
        ("2 * params >= 1e9", 4),
        ("`size` == '1B'", 4),
        ("300 > aspect > 100", int(((MORPH.aspect < 300) & (MORPH.aspect > 100)).sum())),
    ],
)
def test_where(where: str, count: int) -> None:
    assert len(read_runs("morph-2025", where=where)) == count


def test_where_quotes_names_that_are_not_words(shared_data: Path) -> None:
    path = shared_data / "laws" / "chinchilla_points.csv"
    runs = read_runs(path, columns={**CHINCHILLA, "x": "my x"}, where="`my x` > 100 and params < 1e9")
    assert 0 < len(runs) < 245


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("siz == '1B'", "did you mean 'size'"),
        ("`my size` == 1", "names 'my size'"),
        ("size ==", "no expression"),
        ("", "no expression"),
        ("loss = 3", "no expression"),
        ("@loss > 3", "no expression"),
        ("__import__('os').getcwd() == ''", "uses"),
        ("loss.to_csv('out.csv')", "uses"),
        ("size.str.startswith('1')", "uses"),
        ("size[0] == '1'", "uses"),
        ("9 ** 9 > loss", "uses"),
        ("[l for l in loss]", "uses"),
        ("loss.__class__ == 1", "uses"),
        ("loss", "not true or false of each row"),
        ("True", "not true or false of each row"),
        ("loss > 'a'", "does not fit"),
        ("loss > 100", "keeps none of the 76 rows"),
    ],
)
def test_bad_where(where: str, word: str) -> None:
    refuse("morph-2025", word, where=where)


def test_where_drops_rows_before_they_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE + "3e6,4e7,,broken\n4e6,4e7,-1,medium\n", encoding="utf-8")
    refuse(path, "row 3", "no value")
    refuse(path, "row 4", "-1.0", where="size != 'broken'")
    assert len(read_runs(path, where="loss > 0")) == 2


def test_refuses_a_column_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss,params\n1e8,2e9,3.5,2e8\n", encoding="utf-8")
    with pytest.raises(RunsError, match="names the column 'params' twice"):
        read_runs(path)
