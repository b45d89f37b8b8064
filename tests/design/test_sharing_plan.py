"""Plans over shared layers: what they buy, what a law takes them for, and when a plan may choose them.

The planted law reads width, depth and tokens: it takes a block visited twice for two blocks.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lathe.budget import Budget
from lathe.design.candidates import Candidates, Space, candidates, find_departures, find_space
from lathe.design.choice import Plan
from lathe.design.outlook import look
from lathe.design.plan import plan
from lathe.device import Device
from lathe.errors import BudgetError
from lathe.latency.roofline import predict_latency
from lathe.laws.axes import BLOCK, Axis, measure_axes
from lathe.laws.fit import fit
from lathe.laws.law import Law
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.shape import Shape
from lathe.workload import Workload

PATTERNS = ("immediate", "all-over", "reverse")
VOCAB = 8192
CHAT = Workload()
BASE = Shape.of(d_model=256, n_layers=2, n_heads=4, vocab_size=VOCAB)
SMALL: dict[str, Any] = {"d_models": (256, 512, 768), "n_layers": (4, 8, 12, 16, 24)}


def plant(form: str) -> Law:
    """Fit a law to runs that shared nothing."""
    d, n, m = (v.ravel() for v in np.meshgrid([256, 384, 512, 768, 1024], [4, 6, 8, 12, 16, 24], [10.0, 40.0, 160.0]))
    d, n = d.astype(int), n.astype(int)
    stored = n * (4 * d**2 + 3 * d * (8 * d // 3)) + (2 * n + 1) * d
    params = stored + 2 * VOCAB * d
    tokens = m * params
    loss = 1.9 + 60 * d**-0.7 + 1.1 * n**-0.6 + 9e4 * tokens**-0.55
    runs = {
        "params": params, "non_embedding_params": stored, "d_model": d, "n_layers": n, "n_heads": d // 64,
        "n_kv_heads": d // 64, "d_ff": 8 * d // 3, "vocab_size": np.full(len(d), VOCAB),
        "tied": np.zeros(len(d), dtype=bool), "tokens": tokens, "loss": loss,
    }  # fmt: skip
    return fit(runs, form, draws=20)


@pytest.fixture(scope="module")
def law() -> Law:
    return plant("width-depth")


@pytest.fixture(scope="module")
def device() -> Device:
    """Give a GPU without a cache: a repeated block is read from memory again, so that sharing buys memory alone."""
    a100 = load_device("a100-40gb")
    return a100.with_numbers({"cache_bytes": a100.origins["cache_bytes"]}, cache_bytes=0.0)


def ask(law: Law, device: Device, *, assume: tuple[str, ...] = ("sharing",), base: Shape = BASE, **budget: Any) -> Plan:
    space = find_space(law.axes, assume=assume, base=base, **SMALL)
    return plan(law, device, CHAT, Budget(**{"tokens": 5e9, **budget}), space=space, engine="graph", top=3)


def rows_at(found: Candidates, d_model: int, n_layers: int) -> dict[int, int]:
    """Find the rows of one width and depth, by sharing count."""
    at = found.columns
    rows = np.flatnonzero((at["d_model"] == d_model) & (at["n_layers"] == n_layers))
    return {int(at["sharing_count"][row]): int(row) for row in rows}


# What a plan chooses.


def test_sharing_is_chosen_where_the_memory_of_weights_binds(law: Law, device: Device) -> None:
    held, free = (ask(law, device, assume=given, memory_bytes=2e8) for given in ((), ("sharing",)))
    best = free.choices[0]
    assert best.shape.sharing == "immediate"
    assert best.unsupported == ("sharing",)
    assert best.loss < held.choices[0].loss
    assert best.memory_bytes <= 2e8 < replace(best.shape, sharing="none", sharing_count=1).weight_bytes("bf16")
    assert {limit.name for limit in held.limits if limit.binds} == {"memory_bytes"}


@pytest.mark.parametrize("limit", [2e8, 1e9, None])
def test_sharing_is_never_chosen_where_it_is_not_assumed(law: Law, device: Device, limit: float | None) -> None:
    found = ask(law, device, assume=(), memory_bytes=limit)
    every = (*found.choices, *found.front, *found.alternatives, *found.references)
    assert every
    assert {choice.shape.sharing for choice in every} == {"none"}
    assert not any("sharing" in note for note in found.notes)


def test_sharing_that_buys_nothing_stands_behind_the_same_shape_unshared(law: Law, device: Device) -> None:
    best, second = ask(law, device).choices[:2]
    assert (best.shape.sharing, best.unsupported) == ("none", ())
    assert second.shape == replace(best.shape, sharing="immediate", sharing_count=2)
    assert (second.loss, second.total_s) == (best.loss, best.total_s)
    assert second.memory_bytes < best.memory_bytes


def test_sharing_that_buys_time_comes_first(law: Law) -> None:
    """The A100's cache holds a block of 768, so that its second visit is the faster."""
    best, second = ask(law, load_device("a100-40gb")).choices[:2]
    assert best.shape == replace(second.shape, sharing="immediate", sharing_count=2)
    assert best.loss == second.loss
    assert best.total_s < second.total_s


def test_a_plan_says_what_it_takes_sharing_for(law: Law, device: Device) -> None:
    (note,) = (n for n in ask(law, device).notes if n.startswith("assumed of sharing"))
    assert note == (
        "assumed of sharing (immediate): the law counts each visit of a block as a layer of its own, so sharing itself "
        "costs nothing in its predictions, whatever it costs"
    )
    (note,) = (n for n in ask(plant("aspect"), device).notes if n.startswith("assumed of sharing"))
    assert note.endswith("as a layer of its own and the weights of a block once, however often it is visited")


def test_a_law_that_reads_params_takes_a_shared_shape_for_a_smaller_one(device: Device) -> None:
    aspect = plant("aspect")
    space = find_space(aspect.axes, assume=("sharing",), base=BASE, **SMALL)
    seen = look(candidates(space, references=False), aspect, device, CHAT, Budget(tokens=5e9), "graph")
    rows = rows_at(seen.found, 512, 12)
    assert seen.loss_n[rows[2]] > seen.loss_n[rows[1]]
    best = ask(aspect, device).choices[0]
    assert best.shape.sharing == "none"


# Training work.


def test_sharing_saves_no_training_work(law: Law, device: Device) -> None:
    space = find_space(law.axes, assume=("sharing",), base=BASE, **SMALL)
    found = candidates(space, references=False)
    rows = rows_at(found, 512, 12)
    np.testing.assert_array_equal(found.visited_params[[rows[1], rows[2]]], found.shape(rows[1]).params)
    spent = look(found, law, device, CHAT, Budget(train_flops=1e18), "graph")
    assert spent.tokens_n[rows[2]] == spent.tokens_n[rows[1]] == 1e18 / (6 * found.shape(rows[1]).params)
    assert spent.loss_n[rows[2]] == spent.loss_n[rows[1]]
    aimed = look(found, law, device, CHAT, Budget(target_loss=3.0, inference_tokens=1e10), "graph")
    assert aimed.cost_n[rows[2]] == aimed.cost_n[rows[1]] < np.inf


# What a space holds.


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_base_names_the_pattern(pattern: Any, law: Law, device: Device) -> None:
    base = replace(BASE, sharing=pattern, sharing_count=2)
    found = candidates(find_space(law.axes, assume=("sharing",), base=base, **SMALL), references=False)
    row = rows_at(found, 512, 12)[2]
    shape = found.shape(row)
    assert (found.sharing, shape.sharing, shape.stored_layers) == (pattern, pattern, 6)
    columns = predict_latency(found, device=load_device("a100-40gb"), workload=CHAT, engine="graph")
    alone = predict_latency(shape, device=load_device("a100-40gb"), workload=CHAT, engine="graph")
    assert columns.total_s[row] == pytest.approx(alone.total_s)
    assert columns.memory_bytes[row] == pytest.approx(alone.memory_bytes)
    best = ask(law, device, base=base, memory_bytes=2e8).choices[0]
    assert best.shape.sharing == pattern
    unshared = candidates(find_space(law.axes, base=base, **SMALL), references=False)
    assert (unshared.sharing, unshared.shape(0).sharing) == ("none", "none")


def test_the_bases_count_is_tried_beside_one_and_two(law: Law) -> None:
    thrice = replace(BASE, n_layers=6, sharing="all-over", sharing_count=3)
    assert find_space(law.axes, assume=("sharing",), base=thrice).sharing_counts == (1, 2, 3)
    assert find_space(law.axes, assume=("sharing",), base=BASE).sharing_counts == (1, 2)
    with pytest.raises(BudgetError, match=r"leaves the runs' sharing of layers.*assume='sharing'"):
        find_space(law.axes, base=thrice, sharing_counts=(3,))


@pytest.mark.parametrize(("pattern", "there"), [("immediate", True), ("reverse", False)])
def test_a_published_shape_that_shares_stands_among_its_own_pattern(pattern: Any, there: bool) -> None:
    mobile = load_shape("mobilellm-125m-ls")
    base = replace(mobile, sharing=pattern)
    space = find_space({}, assume=("sharing",), base=base, ff_multiple=64, d_models=(576,), n_layers=(30, 60))
    names = set(candidates(space).references.values())
    assert "mobilellm-125m" in names
    assert ("mobilellm-125m-ls" in names) is there


def test_a_published_shape_that_shares_ranks_with_the_candidate_that_does(law: Law, device: Device) -> None:
    """60 layers cost as much time shared or not, and the law sees no difference: memory tells the two apart."""
    base = load_shape("mobilellm-125m-ls")
    space = find_space({}, assume=("sharing",), base=base, ff_multiple=64, d_models=(576,), n_layers=(30, 60))
    found = plan(law, device, CHAT, Budget(tokens=5e9), space=space, engine="graph")
    published = next(c for c in found.references if c.name.startswith("mobilellm-125m-ls"))
    own = next(c for c in found.choices if replace(c.shape, max_seq_len=1) == replace(published.shape, max_seq_len=1))
    assert (own.rank, own.shape.sharing) == (published.rank, "immediate")


def test_runs_that_shared_layers_free_what_they_had() -> None:
    varied = {"sharing": Axis(low=0.5, high=1.0, distinct=2)}
    space = find_space(varied, base=BASE, **SMALL)
    assert space.sharing_counts == (1, 2)
    assert find_space({"sharing": Axis(low=0.5, high=0.5, distinct=1)}, base=BASE).sharing_counts == (2,)
    wider = replace(space, sharing_counts=(1, 2, 4), assumed=("sharing",))
    found = candidates(wider, references=False)
    np.testing.assert_array_equal(find_departures(found, wider, varied)["sharing"], found.columns["sharing_count"] == 4)


def test_a_blocks_weights_are_read_off_shared_runs_too() -> None:
    """What ties params to width and depth is a block's weights, however often it is visited."""
    shapes = [BASE, replace(BASE, n_layers=8, sharing="reverse", sharing_count=2)]
    columns = {n: np.array([getattr(s, n) for s in shapes]) for n in ("params", "non_embedding_params", "d_model")}
    columns |= {"n_layers": np.array([s.n_layers for s in shapes]), "stored_ratio": np.array([1.0, 0.5])}
    block = measure_axes(columns | {"tokens": np.ones(2)})[BLOCK]
    assert block.high / block.low == pytest.approx(1.0, rel=1e-3)


def test_a_count_that_divides_no_depth_leaves_nothing() -> None:
    space = Space(base=replace(BASE, sharing="reverse", sharing_count=2), d_models=(256,), n_layers=(3, 5))
    with pytest.raises(BudgetError, match="no shape of this space fits together"):
        candidates(replace(space, sharing_counts=(2,)), references=False)
