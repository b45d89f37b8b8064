"""The shapes a plan considers: aligned, whole, without doubles, and held where the runs varied nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.design.candidates import COLUMNS, FREE, Space, candidates, find_departures, find_space
from lathe.errors import BudgetError
from lathe.laws.axes import Axis, measure_axes, shape_columns
from lathe.laws.importers import read_runs
from lathe.presets.shapes import load_shape
from lathe.shape import Shape, openlm_d_ff

BASE = Shape.of(d_model=256, n_layers=2, n_heads=4, vocab_size=50432)
SMALL: dict[str, Any] = {"d_models": (256, 320, 512), "n_layers": (2, 3, 4)}


@pytest.fixture(scope="module")
def morph_axes() -> dict[str, Axis]:
    return measure_axes(read_runs("morph-2025"))


def rows_of(space: Space) -> list[tuple[float, ...]]:
    found = candidates(space, references=False)
    return list(zip(*(found.columns[name].tolist() for name in COLUMNS), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    d_models=st.lists(st.sampled_from([64, 96, 128, 192, 256, 320, 768]), min_size=1, max_size=3, unique=True),
    n_layers=st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
    kv_ratios=st.lists(st.sampled_from([1.0, 0.5, 0.25, 0.125]), min_size=1, max_size=4, unique=True),
    ff_ratios=st.lists(st.sampled_from([2.0, 2.5, 8 / 3, 3.0, 4.0]), min_size=1, max_size=4, unique=True),
    sharing=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2, unique=True),
    tensor_parallel=st.sampled_from([1, 2, 4]),
)
def test_every_candidate_is_a_whole_aligned_shape_and_stands_once(
    d_models: list[int],
    n_layers: list[int],
    kv_ratios: list[float],
    ff_ratios: list[float],
    sharing: list[int],
    tensor_parallel: int,
) -> None:
    space = Space(
        base=BASE, d_models=tuple(d_models), n_layers=tuple(n_layers), kv_ratios=tuple(kv_ratios),
        ff_ratios=tuple(ff_ratios), sharing_counts=tuple(sharing), tied=(False, True), tensor_parallel=tensor_parallel,
    )  # fmt: skip
    try:
        found = candidates(space, references=False)
    except BudgetError:
        return
    assert len(set(rows_of(space))) == len(found)
    table = found.law_columns(1e9)
    for row in range(0, len(found), max(1, len(found) // 20)):
        shape = found.shape(row)  # raises ShapeError for what is no shape
        assert shape.d_head == next(h for h in space.d_heads if shape.d_model % h == 0)
        assert shape.n_heads * shape.d_head == shape.d_model
        assert shape.n_heads % tensor_parallel == shape.n_kv_heads % tensor_parallel == 0
        assert shape.d_ff % space.ff_multiple == 0
        assert table["params"][row] == shape.params
        for name, values in shape_columns(shape, tokens=1e9).items():
            assert name not in table or table[name][row] == values[0]


def test_the_grid_is_every_combination() -> None:
    space = Space(base=BASE, **SMALL, kv_ratios=(1.0, 0.5), ff_ratios=(8 / 3, 4.0), tied=(False, True))
    # 256 has two heads of 128, 320 five of 64 (which no two KV heads share), 512 four.
    choices = ((256, 2, (2, 1), (768, 1024)), (320, 5, (5,), (1024, 1280)), (512, 4, (4, 2), (1536, 2048)))
    wanted = {
        (d, n, h, kv, d // h, ff, 50432, tied, 1)
        for d, h, kvs, ffs in choices
        for n in (2, 3, 4)
        for kv in kvs
        for ff in ffs
        for tied in (False, True)
    }
    assert sorted(rows_of(space)) == sorted(wanted)


def test_ratios_that_round_to_one_number_make_one_candidate() -> None:
    space = Space(base=BASE, d_models=(256,), n_layers=(2,), ff_ratios=(2.5, 8 / 3, 3.0), kv_ratios=(0.5, 0.25, 0.125))
    assert len(candidates(space, references=False)) == 1


def test_the_order_of_the_widths_does_not_matter() -> None:
    forth, back = (Space(base=BASE, d_models=w, n_layers=(2,)) for w in ((256, 320, 512), (512, 256, 320)))
    assert rows_of(forth) == rows_of(back)


def test_the_default_space_is_held_where_the_runs_were(morph_axes: dict[str, Axis]) -> None:
    space = find_space(morph_axes)
    found = candidates(space)
    d_model = found.columns["d_model"]
    own = np.ones(len(found), dtype=bool)
    own[list(found.references)] = False
    np.testing.assert_array_equal(found.columns["d_ff"][own], openlm_d_ff(d_model[own].astype(int)))
    np.testing.assert_array_equal(found.columns["n_kv_heads"], found.columns["n_heads"])
    assert set(found.columns["vocab_size"].tolist()) == {50432.0}
    assert not found.columns["tied"].any()
    assert found.sharing == "none"
    assert (len(np.unique(d_model[own])), d_model[own].min(), d_model[own].max()) == (125, 256, 8192)
    assert space.assumed == ()


def test_published_shapes_stand_among_the_candidates(morph_axes: dict[str, Axis]) -> None:
    found = candidates(find_space(morph_axes))
    named = {name: row for row, name in found.references.items()}
    for name in ("scale_open_lm_1b_v8", "scale_open_lm_1b_v3", "open_lm_11m"):
        shape, preset = found.shape(named[name]), load_shape(name)
        assert all(getattr(shape, c) == getattr(preset, c) for c in COLUMNS)
    assert found.name(named["scale_open_lm_1b_v8"]) == "scale_open_lm_1b_v8 (3072×12)"
    assert not any("mobilellm" in name.lower() for name in named)  # tied, fewer KV heads, another vocabulary


def test_taking_rows_keeps_their_published_names(morph_axes: dict[str, Axis]) -> None:
    found = candidates(find_space(morph_axes, d_models=(256, 512), n_layers=(2, 4)))
    first = min(found.references)
    part = found.take(slice(first - 1, first + 3))
    assert part.references == {i + 1: found.references[first + i] for i in range(3)}
    picked = found.take(np.array([first + 2, 0, first]))
    assert picked.references == {0: found.references[first + 2], 2: found.references[first]}
    assert [picked.name(i) for i in range(3)] == [found.name(r) for r in (first + 2, 0, first)]
    assert found.take(np.array([], dtype=int)).references == {}


def test_names_say_what_sets_candidates_apart() -> None:
    axes = {"vocab_size": Axis(low=32000, high=32000, distinct=1)}
    space = find_space(axes, assume=tuple(FREE), d_models=(512,), n_layers=(4,))
    found = candidates(space, references=False)
    names = [found.name(row) for row in range(len(found))]
    assert len(set(names)) == len(names)
    assert "512×4 ff 1024 kv 4/4 vocab 32000 untied 4 stored" in names
    assert "512×4 ff 2048 kv 1/4 vocab 65536 tied 2 stored" in names


def test_only_what_is_assumed_is_freed(morph_axes: dict[str, Axis]) -> None:
    held = {n: set(candidates(find_space(morph_axes, **SMALL)).columns[n].tolist()) for n in ("vocab_size", "tied")}
    assert held == {"vocab_size": {50432.0}, "tied": {False}}
    free = candidates(find_space(morph_axes, assume=("tied",), **SMALL), references=False)
    assert set(free.columns["tied"].tolist()) == {False, True}
    assert set(free.columns["vocab_size"].tolist()) == {50432.0}
    shared = candidates(find_space(morph_axes, assume=("sharing",), **SMALL), references=False)
    assert set(shared.columns["sharing_count"].tolist()) == {1.0, 2.0}
    assert shared.sharing == "immediate"
    assert (shared.columns["n_layers"] % shared.columns["sharing_count"] == 0).all()


def test_departures_are_marked_by_what_the_runs_had(morph_axes: dict[str, Axis]) -> None:
    space = find_space(morph_axes, assume=tuple(FREE), d_models=(256, 2048), n_layers=(4,))
    found = candidates(space, references=False)
    left, at = find_departures(found, space, morph_axes), found.columns
    assert list(left) == list(FREE)
    np.testing.assert_array_equal(left["ff_ratio"], at["d_ff"] != openlm_d_ff(at["d_model"].astype(int)))
    np.testing.assert_array_equal(left["kv_ratio"], at["n_kv_heads"] != at["n_heads"])
    np.testing.assert_array_equal(left["vocab_size"], at["vocab_size"] != 50432)
    np.testing.assert_array_equal(left["tied"], at["tied"])
    np.testing.assert_array_equal(left["sharing"], at["sharing_count"] == 2)
    # Runs that say nothing of an axis are taken to hold it at its usual value, and support no other.
    silent = find_departures(found, space, {})
    np.testing.assert_array_equal(silent["kv_ratio"], left["kv_ratio"])
    assert list(find_departures(found, find_space(morph_axes, assume=("tied",)), morph_axes)) == ["tied"]


def test_runs_that_vary_d_ff_free_its_range() -> None:
    space = find_space({"ff_ratio": Axis(low=2.0, high=4.0, distinct=9)})
    assert space.ff_ratios == (2.0, 2.5, 8 / 3, 3.0, 3.5, 4.0)
    assert candidates(space).freed == ("ff_ratio",)


def test_runs_that_vary_tying_and_kv_heads_free_them() -> None:
    axes = {"tied": Axis(low=0.0, high=1.0, distinct=2), "kv_ratio": Axis(low=0.25, high=1.0, distinct=3)}
    space = find_space(axes)
    assert space.tied == (False, True)
    assert space.kv_ratios == (0.25, 0.5, 1.0)
    assert space.guessed == ("ff_ratio", "vocab_size")


def test_what_runs_do_not_say_is_taken_from_a_like_shape() -> None:
    space = find_space({}, base=load_shape("mobilellm-125m"))
    assert (space.vocab_sizes, space.tied, space.kv_ratios) == ((32000,), (True,), (3 / 9,))
    assert set(space.guessed) == {"ff_ratio", "kv_ratio", "vocab_size", "tied"}
    assert find_space({}, vocab_sizes=(65536,)).vocab_sizes == (65536,)
    assert space.assumed == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"assume": ("kv_ratios",)}, r"no axis 'kv_ratios' can be assumed; did you mean 'kv_ratio'"),
        ({"assume": ("depth",)}, r"no axis 'depth' can be assumed; known: ff_ratio, kv_ratio"),
        ({"d_modls": (256,)}, r"has no 'd_modls'; did you mean 'd_models'"),
        ({"kv_ratios": (0.5,)}, r"kv_ratios=\(0.5,\) leaves the runs' n_kv_heads / n_heads.*assume='kv_ratio'"),
        ({"vocab_sizes": (32000,)}, r"leaves the runs' vocabulary .*assume='vocab_size'"),
        ({"tied": (True,)}, r"leaves the runs' tying.*assume='tied'"),
        ({"sharing_counts": (2,)}, r"leaves the runs' sharing of layers.*assume='sharing'"),
        ({"ff_ratios": (4.0,)}, r"leaves the runs' d_ff / d_model.*assume='ff_ratio'"),
        ({"kv_ratios": (0.5,), "assume": ("tied",)}, r"assume='kv_ratio'"),
        ({"d_models": ()}, "has no d_models; give at least one"),
        ({"n_layers": (4, 0)}, "n_layers 0; wanted numbers above zero"),
        ({"d_models": (-256,)}, "d_models -256; wanted numbers above zero"),
    ],
)
def test_wrong_spaces_are_refused(morph_axes: dict[str, Axis], given: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        find_space(morph_axes, **given)


def test_a_choice_on_a_held_axis_may_repeat_the_runs_value_or_be_assumed(morph_axes: dict[str, Axis]) -> None:
    assert find_space(morph_axes, kv_ratios=(1.0,)).kv_ratios == (1.0,)
    assert find_space(morph_axes, assume=("kv_ratio",), kv_ratios=(0.5,)).kv_ratios == (0.5,)


@pytest.mark.parametrize("given", [{"d_models": (100, 300)}, {"d_models": (192,), "tensor_parallel": 2}])
def test_widths_that_no_head_divides_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="is a multiple of a head dim in"):
        candidates(Space(base=BASE, **given))


def test_nothing_left_is_refused() -> None:
    with pytest.raises(BudgetError, match="no shape of this space fits together"):
        candidates(Space(base=BASE, d_models=(256,), n_layers=(3,), sharing_counts=(2,)), references=False)
