"""Tests of the `Run` word and of the table of runs: what is refused, and whether the message names the cell."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.codec import decode, encode
from lathe.columns import COLUMNS, FAMILIES, REQUIRED, find_column
from lathe.errors import RunsError
from lathe.runs import DERIVATIONS, Run, derive, find_repeats, validate
from lathe.shape import Shape

SHAPE = Shape.of(d_model=64, n_layers=2, n_heads=2, vocab_size=512, tied=True)


def make_table(count: int = 4) -> dict[str, Any]:
    return {
        "name": [f"run {i}" for i in range(count)],
        "params": [1_000_000 * (i + 1) for i in range(count)],
        "d_model": [64 * (i + 1) for i in range(count)],
        "n_layers": [2] * count,
        "tokens": [20_000_000.0 * (i + 1) for i in range(count)],
        "loss": [4.0 - 0.1 * i for i in range(count)],
        "loss_kind": ["held-out"] * count,
        "seed": [0] * count,
    }


def make_run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "name": "a",
        "shape": SHAPE,
        "tokens": 1_000_000,
        "losses": {"c4": 3.5, "wiki-text": 3.9},
        "validation": "c4",
    }
    return Run(**{**fields, **changes})


def refuse(table: Any, *words: str, **options: Any) -> None:
    with pytest.raises(RunsError) as caught:
        validate(table, **options)
    for word in words:
        assert word in str(caught.value)


def test_validate_returns_typed_arrays_and_what_follows() -> None:
    arrays = validate(make_table())
    assert arrays["params"].dtype == np.float64
    assert arrays["d_model"].dtype == np.int64
    assert arrays["aspect"].tolist() == [32.0, 64.0, 96.0, 128.0]
    assert arrays["tokens_per_param"].tolist() == [20.0] * 4
    assert arrays["flops"][1] == 6 * 2e6 * 40e6


def test_validate_takes_frames_with_any_index_and_rows_by_other_numbers() -> None:
    frame = pd.DataFrame(make_table(), index=[7, 3, 9, 1])
    assert validate(frame)["loss"].tolist() == make_table()["loss"]
    frame.loc[9, "loss"] = -1.0
    refuse(frame, "row 3 (run 2), column 'loss' is -1.0")
    refuse(frame, "row 10 (run 2), column 'loss' is -1.0", rows=[8, 4, 10, 2])


@pytest.mark.parametrize("column", ["params", "tokens", "loss"])
def test_missing_column_names_the_nearest(column: str) -> None:
    table = make_table()
    table[f"{column}_"] = table.pop(column)
    refuse(table, f"no column {column!r}", f"did you mean '{column}_'", "--columns", source="mine.csv")


def test_columns_that_follow_need_not_be_given() -> None:
    table = make_table()
    table["flops"] = [6.0 * n * d for n, d in zip(table["params"], table.pop("tokens"), strict=True)]
    assert validate(table)["tokens"].tolist() == pytest.approx(make_table()["tokens"])
    assert "params" not in validate({"loss": [1.0, 2.0], "error": [0.5, 0.6]}, target="error", columns=["loss"])


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("loss", float("nan"), "no value (NaN)"),
        ("loss", None, "no value (NaN)"),
        ("loss", float("inf"), "finite"),
        ("loss", 0.0, "more than 0"),
        ("loss", "three", "'three'; wanted a number"),
        ("loss", True, "wanted a number"),
        ("loss", 10**400, "finite"),
        ("params", -1, "more than 0"),
        ("tokens", 0, "more than 0"),
        ("tokens", -float("inf"), "finite"),
        ("d_model", 64.5, "whole number"),
        ("n_layers", float("nan"), "no value (NaN)"),
        ("seed", "one", "whole number"),
        ("loss_kind", "heldout", "did you mean 'held-out'"),
        ("loss_kind", None, "no value (NaN)"),
        ("loss_kind", "un-annealed", "select one"),
        ("name", ["a"], "wanted text"),
    ],
)
def test_a_bad_cell_is_named(column: str, value: object, wanted: str) -> None:
    table = make_table()
    cells = np.empty(4, dtype=object)
    cells[:] = table[column]
    cells[2] = value
    refuse({**table, column: cells}, "row 3", f"column {column!r}", wanted)


@pytest.mark.parametrize(
    ("column", "value"),
    [("tied", 2), ("error", 1.5), ("error_17", -0.1), ("accuracy_copa", 61.0), ("loss_se", -0.1), ("loss_c4", 0)],
)
def test_bounds_of_optional_columns(column: str, value: float) -> None:
    refuse({**make_table(), column: [0, 1, value, 1]}, f"column {column!r}")


def test_one_word_in_a_column_of_texts_is_the_one_named() -> None:
    refuse({**make_table(), "loss": ["3.1", "3.2", "n/a?", "3.0"]}, "row 3", "'n/a?'")
    refuse({**make_table(), "loss": ["3.1", "3.2", "3.3", "3.0"]}, "row 1", "'3.1'; wanted a number")


def test_gaps_where_they_are_allowed() -> None:
    table = {**make_table(), "loss_c4": [3.0, np.nan, 3.1, None], "seed": [1, None, 2, 3], "trunk": [None, "t"] * 2}
    arrays = validate(table)
    assert np.isnan(arrays["loss_c4"]).tolist() == [False, True, False, True]
    assert arrays["trunk"].tolist() == [None, "t", None, "t"]
    refuse(table, "row 2", "'loss_c4'", target="loss_c4")


def test_a_column_without_any_value_is_no_column() -> None:
    table = {**make_table(), "n_kv_heads": [None] * 4, "vocab_size": [np.nan] * 4}
    assert not {"n_kv_heads", "vocab_size"} & set(validate(table))
    refuse({**table, "loss": [np.nan] * 4}, "row 1", "'loss'")


def test_unknown_columns_pass_unless_needed() -> None:
    table = {**make_table(), "colour": ["red", None, "blue", "red"], "mine": [1.0, np.inf, 2.0, 3.0]}
    assert validate(table)["colour"][0] == "red"
    refuse(table, "'mine'", "finite", target="mine")
    refuse(table, "'colour'", "wanted a number", columns=["colour"])


def test_rows_equal_in_every_column() -> None:
    table = {key: [*values, values[1]] for key, values in make_table().items()}
    refuse(table, "row 5 (run 1) equals row 2 (run 1)", "duplicates='drop'")
    assert find_repeats(table).tolist() == [0, 1, 2, 3, 1]
    validate({**table, "seed": [0, 0, 0, 0, 1]})  # a replicate
    validate({**table, "mine": list("aaaab")})


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({}, "no columns"),
        (None, "no columns in a NoneType"),
        ([{"loss": 1.0}], "no columns in a list"),
        ({"loss": []}, "no rows"),
        (pd.DataFrame(columns=["params", "tokens", "loss"]), "no rows"),
        ({"loss": [1.0, 2.0], "params": [1.0]}, "has 1 rows but 'loss' has 2"),
        ({"loss": [[1.0], [2.0]]}, "2 dimensions"),
        ({"loss": [[1.0], 2.0]}, "holds sequences"),
        ({"loss": 3.0}, "0 dimensions"),
    ],
)
def test_not_a_table(table: Any, word: str) -> None:
    refuse(table, word, source="mine")


def test_large_tables_are_checked_in_bulk() -> None:
    rng = np.random.default_rng(0)
    count = 100_000
    table = {name: rng.uniform(1, 10, count) for name in ("params", "tokens", "loss")}
    table["name"] = np.array([f"run {i}" for i in range(count)])
    table["loss"][77_776] = np.nan
    refuse(table, "row 77777", "column 'loss'")


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 30),
    data=st.data(),
    column=st.sampled_from(["params", "tokens", "loss", "d_model", "n_layers"]),
    bad=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -3.0]),
)
def test_any_bad_cell_is_found(count: int, data: st.DataObject, column: str, bad: float) -> None:
    table = make_table(count)
    validate(table)
    row = data.draw(st.integers(0, count - 1))
    table[column] = [bad if i == row else float(v) for i, v in enumerate(table[column])]
    if count == 1 and np.isnan(bad) and column in ("d_model", "n_layers"):
        assert column not in validate(table)  # nothing left in it
        return
    refuse(table, f"row {row + 1} ", f"column {column!r}")


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.booleans()), min_size=1, max_size=12))
def test_find_repeats_agrees_with_a_loop(rows: list[tuple[int, str, bool]]) -> None:
    table = {str(i): list(column) for i, column in enumerate(zip(*rows, strict=True))}
    assert find_repeats(table).tolist() == [rows.index(row) for row in rows]


def test_derivations_only_add_columns_lathe_knows() -> None:
    assert {name for name, _, _ in DERIVATIONS} | {n for _, needs, _ in DERIVATIONS for n in needs} <= set(COLUMNS)
    assert REQUIRED == ("params", "tokens")
    assert derive({"params": [10], "flops": [1200]}) == {"tokens": 20.0, "tokens_per_param": 2.0}
    assert derive({"loss": ["a"]}) == {}


def test_families_do_not_hide_columns() -> None:
    assert find_column("loss_kind") is COLUMNS["loss_kind"]
    assert find_column("loss_se_c4") is FAMILIES["loss_se_"]
    assert find_column("loss_c4") is FAMILIES["loss_"]
    assert find_column("colour") is None


def test_run_becomes_a_row() -> None:
    run = make_run(loss_ses={"c4": 0.01}, accuracies={"copa": 0.6}, seed=3, size="tiny", versions={"lathe": "0.1"})
    row = json.loads(json.dumps(run.to_row()))
    assert run.loss == row["loss"] == row["loss_c4"] == 3.5
    assert row["loss_wiki_text"] == 3.9
    assert row["params"] == SHAPE.params
    assert row["non_embedding_params"] == SHAPE.params - 512 * 64
    assert row["loss_se"] == row["loss_se_c4"] == 0.01
    assert row["tied"] is True
    assert row["accuracy_copa"] == 0.6
    assert "trunk" not in row
    assert set(row) <= set(validate({key: [value] for key, value in row.items()}))
    assert all(find_column(key) for key in row)


def test_run_goes_through_the_codec() -> None:
    run = make_run(loss_ses={"c4": 0.01}, trunk="b", seconds=12.5)
    assert decode(Run, encode(run)) == run


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"validation": "c5"}, "no loss on validation set 'c5'"),
        ({"losses": {"c4": float("nan")}}, "column 'loss'"),
        ({"losses": {"c4": 3.0, "b": -1.0}}, "column 'loss_b' is -1.0"),
        ({"tokens": 0}, "column 'tokens'"),
        ({"loss_kind": "final"}, "column 'loss_kind' is 'final'"),
        ({"loss_ses": {"c5": 0.1}}, "no loss on ['c5']"),
        ({"accuracies": {"copa": 61.0}}, "from 0 to 1"),
        ({"losses": {"c4": 3.0, "kind": 3.0}}, "'loss_kind' would mean two things"),
        ({"losses": {"c4": 3.0, "a-b": 3.0, "a_b": 3.0}}, "'loss_a_b' would mean two things"),
    ],
)
def test_a_wrong_run_cannot_be_built(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(RunsError, match=re.escape(word)):
        make_run(**changes)
