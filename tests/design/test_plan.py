"""A plan against the published 1B models, against brute force over every candidate, and against bad questions.

The planted law reads width, depth and tokens, of held-out losses, so that it may choose training tokens too.
"""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import codec
from lathe.budget import Budget
from lathe.design.candidates import Space, candidates, find_space
from lathe.design.choice import Choice, Plan
from lathe.design.limits import fitting, list_limits
from lathe.design.outlook import SERVING, Outlook, look, tokens_to
from lathe.design.plan import SHORTLIST, plan
from lathe.device import Device
from lathe.errors import BudgetError, LawError, PresetError, RecipeError, WorkloadError
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.laws.optimum import lifetime_optimal
from lathe.presets.devices import load_device
from lathe.shape import Shape, openlm_d_ff
from lathe.workload import Workload

VOCAB = 50432
CHAT = Workload()
MORPH = Budget(total_s=2.0, params=1.7e9, tokens=29e9)
SMALL: dict[str, Any] = {"d_models": tuple(range(256, 1025, 128)), "n_layers": tuple(range(2, 25, 3))}
SERVED = ("first_token_s", "per_token_s", "total_s", "memory_bytes", "params")


@pytest.fixture(scope="module")
def a100() -> Device:
    return load_device("a100-40gb")


@pytest.fixture(scope="module")
def morph() -> Law:
    return fit(read_runs("morph-2025"), draws=50)


@pytest.fixture(scope="module")
def eager(morph: Law, a100: Device) -> Plan:
    return plan(morph, a100, CHAT, MORPH)


@pytest.fixture(scope="module")
def graph(morph: Law, a100: Device) -> Plan:
    return plan(morph, a100, CHAT, MORPH, engine="graph")


def plant_runs() -> dict[str, Any]:
    d, n, m = (v.ravel() for v in np.meshgrid([384, 512, 768, 1024, 1536], [4, 6, 8, 12, 16, 24], [10.0, 40.0, 160.0]))
    d, n = d.astype(int), n.astype(int)
    stored = n * (4 * d**2 + 3 * d * (8 * d // 3)) + (2 * n + 1) * d
    params = stored + 2 * VOCAB * d
    tokens = m * params
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(d)))
    return {
        "params": params,
        "non_embedding_params": stored,
        "d_model": d,
        "n_layers": n,
        "n_heads": d // 64,
        "n_kv_heads": d // 64,
        "d_ff": 8 * d // 3,
        "vocab_size": np.full(len(d), VOCAB),
        "tied": np.zeros(len(d), dtype=bool),
        "tokens": tokens,
        "loss": noise * (1.9 + 60 * d**-0.7 + 1.1 * n**-0.6 + 9e4 * tokens**-0.55),
    }


@pytest.fixture(scope="module")
def law() -> Law:
    return fit(plant_runs(), "width-depth", draws=50)


@pytest.fixture(scope="module")
def space(law: Law) -> Space:
    return find_space(law.axes, **SMALL)


budgets = st.fixed_dictionaries(
    {},
    optional={
        "total_s": st.floats(0.3, 4.0),
        "per_token_s": st.floats(1e-3, 1.5e-2),
        "first_token_s": st.floats(2e-3, 2e-2),
        "memory_bytes": st.floats(2e8, 2e9),
        "params": st.floats(5e7, 8e8),
        "min_params": st.floats(1e7, 5e7),
    },
)
trainings = st.one_of(
    st.builds(lambda v: {"tokens": v}, st.floats(1e9, 1e11)),
    st.builds(lambda v: {"train_flops": v}, st.floats(1e18, 1e20)),
    st.builds(
        lambda loss, served: {"target_loss": loss, "inference_tokens": served},
        st.floats(2.5, 3.2),
        st.floats(1e9, 1e12),
    ),
)
questions = st.tuples(budgets, trainings, st.sampled_from(["eager", "graph"]))


def ask(law: Law, device: Device, space: Space, question: Any, **more: Any) -> tuple[Plan, Outlook, np.ndarray]:
    """Make a plan, and beside it what is predicted of every candidate and which of them fit."""
    serving, training, engine = question
    budget = Budget(**serving, **training)
    found = plan(law, device, CHAT, budget, engine=engine, space=space, **more)
    seen = look(candidates(space), law, device, CHAT, budget, engine)
    return found, seen, fitting(list_limits(budget, device), seen.serving, seen.cost_n)


def cost(choice: Choice) -> float:
    return choice.loss if choice.lifetime_flops is None else choice.lifetime_flops


# The published models.


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_the_published_1b_is_near_the_front_and_what_beats_it_is_named(eager: Plan, graph: Plan, engine: str) -> None:
    found = eager if engine == "eager" else graph
    morph_1b = next(c for c in found.references if c.name.startswith("scale_open_lm_1b_v8"))
    assert (morph_1b.shape.d_model, morph_1b.shape.n_layers) == (3072, 12)
    assert engine == "graph" or morph_1b.on_front or morph_1b.loss <= 1.005 * found.choices[0].loss
    by_name = {c.name: c for c in (*found.front, *found.references, *found.choices)}
    for choice in (*found.references, *found.choices):
        assert choice.on_front == (not choice.beaten_by)
        if choice.beaten_by:
            other = by_name[choice.beaten_by]
            assert other.total_s <= choice.total_s
            assert other.loss <= choice.loss
            assert other.on_front


def test_eagerly_the_plan_finds_morph_1b_itself(eager: Plan) -> None:
    morph_1b = next(c for c in eager.references if c.name.startswith("scale_open_lm_1b_v8"))
    best = eager.choices[0]
    assert best.loss <= morph_1b.loss <= 1.005 * best.loss
    assert morph_1b.loss_low is not None
    assert morph_1b.loss_high is not None
    assert morph_1b.loss_low < morph_1b.loss < morph_1b.loss_high
    assert best.decode_bound == "launch"


def test_graph_capture_makes_depth_cheap_and_the_plan_says_why(eager: Plan, graph: Plan) -> None:
    wide, deep = eager.choices[0], graph.choices[0]
    assert deep.shape.n_layers >= 1.5 * wide.shape.n_layers
    assert deep.loss < wide.loss
    for found, other in ((eager, graph), (graph, eager)):
        (note,) = (n for n in found.notes if n.startswith("within the same budget"))
        assert f"would choose {other.choices[0].name} over {found.choices[0].name}" in note
        assert f"launch overhead is what makes depth costly, {wide.shape.n_layers} layers eagerly" in note
    assert any(n.startswith(f"decoding of {wide.name} is bound by launches") for n in eager.notes)
    assert any("launches are captured" in n for n in graph.notes)


def test_the_plan_holds_what_the_runs_held(eager: Plan) -> None:
    for choice in (*eager.choices, *eager.front, *eager.references, *eager.alternatives):
        shape = choice.shape
        assert (shape.vocab_size, shape.tied, shape.sharing, shape.n_kv_heads) == (VOCAB, False, "none", shape.n_heads)
        assert shape.d_ff == openlm_d_ff(shape.d_model)
        assert choice.unsupported == ()
    assert eager.assumed == ()


def test_a_published_shape_shares_rank_and_chance_with_the_candidate_it_doubles(eager: Plan) -> None:
    morph_1b = next(c for c in eager.references if c.name.startswith("scale_open_lm_1b_v8"))
    twin = next(c for c in eager.choices if c.name == "3072×12")
    assert (morph_1b.rank, morph_1b.chance) == (twin.rank, twin.chance)
    assert [c.rank for c in eager.choices] == [1, 2, 3, 4, 5]


# Against brute force.


@settings(max_examples=60, deadline=None)
@given(question=questions)
def test_no_plan_breaks_its_budget(law: Law, a100: Device, space: Space, question: Any) -> None:
    found, seen, fits_n = ask(law, a100, space, question)
    assert found.fitting == fits_n.sum()
    assert found.considered == len(seen.found)
    for choice in (*found.choices, *found.references):
        for limit in found.limits:
            assert getattr(choice, limit.name) <= limit.value
        if found.budget.min_params is not None:
            assert choice.params >= found.budget.min_params
        assert choice.params == choice.shape.params
        if found.budget.flops is not None:
            assert 6 * choice.params * choice.tokens == pytest.approx(found.budget.flops)
        if found.budget.target_loss is not None:
            assert choice.loss == pytest.approx(found.budget.target_loss, rel=1e-6)
            served = found.budget.inference_tokens or 0.0
            assert choice.lifetime_flops == pytest.approx(
                6 * choice.params * choice.tokens + 2 * choice.params * served
            )
    for choice in (*found.front, *found.alternatives):
        assert all(getattr(choice, x.name) <= x.value for x in found.limits if not x.timed)


@settings(max_examples=60, deadline=None)
@given(question=questions)
def test_choices_are_the_best_in_order(law: Law, a100: Device, space: Space, question: Any) -> None:
    found, seen, fits_n = ask(law, a100, space, question, top=8)
    costs = [cost(c) for c in found.choices]
    assert costs == sorted(costs)
    assert [c.rank for c in found.choices] == list(range(1, len(costs) + 1))
    assert len({c.name for c in found.choices}) == len(costs)
    if costs:
        assert costs[0] == seen.cost_n[fits_n].min()
        assert found.nearest is None
    everyone = (*found.choices, *found.references, *found.front)
    for one in everyone:
        assert (one.rank > 0) == all(getattr(one, x.name) <= x.value for x in found.limits)
        assert all(one.rank < other.rank for other in everyone if one.rank and other.rank and cost(one) < cost(other))


@settings(max_examples=40, deadline=None)
@given(question=questions)
def test_nothing_beats_the_front_and_the_front_beats_the_rest(
    law: Law, a100: Device, space: Space, question: Any
) -> None:
    found, seen, _ = ask(law, a100, space, question)
    untimed_n = fitting([x for x in found.limits if not x.timed], seen.serving, seen.cost_n)
    time_n, cost_n = seen.serving["total_s"][untimed_n], seen.cost_n[untimed_n]
    no_worse = (time_n[:, None] >= time_n) & (cost_n[:, None] >= cost_n)
    beaten_n = (no_worse & ((time_n[:, None] > time_n) | (cost_n[:, None] > cost_n))).any(axis=1)
    wanted = set(zip(time_n[~beaten_n].tolist(), cost_n[~beaten_n].tolist(), strict=True))
    assert {(c.total_s, cost(c)) for c in found.front} == wanted
    assert len(found.front) == len(wanted)
    assert [c.total_s for c in found.front] == sorted(c.total_s for c in found.front)
    assert all(c.on_front for c in found.front)
    for choice in (*found.choices, *found.references):
        assert choice.on_front == ((choice.total_s, cost(choice)) in wanted)


@settings(max_examples=25, deadline=None)
@given(question=questions, time_s=st.floats(0.2, 4.0), rung=st.integers(0, 23))
def test_the_alternatives_hold_the_best_of_smaller_budgets(
    law: Law, a100: Device, space: Space, question: Any, time_s: float, rung: int
) -> None:
    found, seen, _ = ask(law, a100, space, question)
    untimed_n = fitting([x for x in found.limits if not x.timed], seen.serving, seen.cost_n)
    if not untimed_n.any():
        assert found.alternatives == ()
        return
    memory_n = seen.serving["memory_bytes"]
    most = np.geomspace(memory_n[untimed_n].min(), memory_n[untimed_n].max(), 24)[rung]
    within_n = untimed_n & (memory_n <= most) & (seen.serving["total_s"] <= time_s)
    best = [cost(c) for c in found.alternatives if c.memory_bytes <= most and c.total_s <= time_s]
    assert min(best, default=np.inf) == seen.cost_n[within_n].min(initial=np.inf)


@settings(max_examples=30, deadline=None)
@given(question=questions)
def test_relaxing_a_limit_never_hurts_and_buys_what_was_said(
    law: Law, a100: Device, space: Space, question: Any
) -> None:
    serving, training, engine = question
    found, _, _ = ask(law, a100, space, question)
    before = cost(found.choices[0]) if found.choices else np.inf
    for limit in found.limits:
        if limit.source != "budget":
            continue
        wider = {**serving, limit.name: 1.1 * limit.value}
        if wider.get("first_token_s", 0) > wider.get("total_s", np.inf):
            continue
        after = plan(law, a100, CHAT, Budget(**wider, **training), engine=engine, space=space, top=1).choices
        if not after:
            assert not found.choices
            continue
        assert cost(after[0]) <= before
        if found.choices:
            assert before - cost(after[0]) == pytest.approx(limit.gain, abs=1e-12)
            assert limit.binds == (cost(after[0]) < before)
            assert limit.best.endswith((after[0].name, f"({after[0].name})")) == limit.binds


@settings(max_examples=25, deadline=None)
@given(question=questions)
def test_chances_are_shared_among_all_that_fit(law: Law, a100: Device, space: Space, question: Any) -> None:
    found, _, _ = ask(law, a100, space, question, top=SHORTLIST)
    chances = [c.chance for c in found.choices]
    assert all(0 <= p <= 1 for p in chances)
    own = {c.rank: c.chance for c in (*found.choices, *found.references)}
    assert sum(own.values()) == pytest.approx(1.0 if chances else 0.0)
    assert sum(chances) == pytest.approx(sum(own.values()))


def test_the_chance_is_the_share_of_draws_in_which_a_shape_is_best(law: Law, a100: Device, space: Space) -> None:
    budget = Budget(total_s=1.0, tokens=5e9)
    found = plan(law, a100, CHAT, budget, space=space, top=SHORTLIST)
    tables = [c.shape for c in found.choices]
    columns = {
        "d_model": np.array([s.d_model for s in tables]),
        "n_layers": np.array([s.n_layers for s in tables]),
        "tokens": np.full(len(tables), 5e9),
    }
    ((_, loss_bn),) = law.draws(columns)
    wanted = np.bincount(loss_bn.argmin(axis=1), minlength=len(tables)) / len(loss_bn)
    np.testing.assert_allclose([c.chance for c in found.choices], wanted)


@settings(max_examples=20, deadline=None)
@given(
    assume=st.lists(st.sampled_from(["ff_ratio", "kv_ratio", "vocab_size", "tied", "sharing"]), unique=True),
    engine=st.sampled_from(["eager", "graph"]),
)
def test_held_axes_are_left_only_by_assumption_and_marked(
    law: Law, a100: Device, assume: list[str], engine: str
) -> None:
    free = find_space(law.axes, assume=assume, d_models=(512, 1024), n_layers=(4, 12))
    found = plan(law, a100, CHAT, Budget(tokens=1e10, total_s=3.0), space=free, engine=engine, top=50)
    assert found.assumed == tuple(assume)
    left = set()
    for choice in (*found.choices, *found.front, *found.alternatives, *found.references):
        s = choice.shape
        off = {
            "ff_ratio": not 8 / 3 * s.d_model - 1 <= s.d_ff <= openlm_d_ff(s.d_model),
            "kv_ratio": s.n_kv_heads != s.n_heads,
            "vocab_size": s.vocab_size != VOCAB,
            "tied": s.tied,
            "sharing": s.sharing != "none",
        }
        assert set(choice.unsupported) == {name for name, is_off in off.items() if is_off}
        left |= set(choice.unsupported)
    assert left <= set(assume)
    said = [n for n in found.notes if n.startswith("assumed and not supported by any run")]
    assert len(said) == bool(assume)
    assert all(name in said[0] for name in assume)


def test_of_shapes_the_law_cannot_tell_apart_the_fastest_comes_first(law: Law, a100: Device) -> None:
    free = find_space(law.axes, assume=("kv_ratio", "ff_ratio"), d_models=(1024,), n_layers=(12,))
    found = plan(law, a100, CHAT, Budget(tokens=1e10), space=free, engine="graph", top=100)
    twins = [c for c in found.choices if c.name.startswith("1024×12 ")]
    assert len(twins) > 10
    assert len({c.loss for c in twins}) == 1
    times = [c.total_s for c in twins]
    assert times == sorted(times)
    assert [c.shape for c in found.front if c.loss == twins[0].loss] == [twins[0].shape]
    assert all(c.chance == 0.0 for c in twins[1:])


def test_a_law_without_draws_gives_no_intervals(a100: Device, space: Space) -> None:
    blunt = fit(plant_runs(), "width-depth", draws=0)
    found = plan(blunt, a100, CHAT, Budget(tokens=1e10), space=space)
    assert {(c.loss_low, c.loss_high, c.chance) for c in found.choices} == {(None, None, 0.0)}


# Training.


def test_days_and_dollars_set_the_tokens_of_each_shape(law: Law, a100: Device, space: Space) -> None:
    machine: dict[str, Any] = {"train_devices": 8, "train_flops_per_s": 312e12, "mfu": 0.4}
    timed = plan(law, a100, CHAT, Budget(days=0.5, **machine), space=space)
    paid = plan(law, a100, CHAT, Budget(dollars=0.5 * 24 * 8 * 2, price_per_hour=2.0, **machine), space=space)
    flops = 0.5 * 86_400 * 8 * 0.4 * 312e12
    assert [c.name for c in timed.choices] == [c.name for c in paid.choices]
    for choice in timed.choices:
        assert 6 * choice.params * choice.tokens == pytest.approx(flops)
    assert any("10 % more training tokens would lower its loss" in n for n in timed.notes)
    for choice in paid.choices:
        assert choice.train_days == pytest.approx(choice.train_flops / (8 * 0.4 * 312e12) / 86_400)
        assert choice.dollars == pytest.approx(choice.train_days * 24 * 8 * 2)
    assert all(c.dollars is None for c in timed.choices)


def test_more_training_tokens_buy_what_the_note_says(law: Law, a100: Device, space: Space) -> None:
    first, more = (plan(law, a100, CHAT, Budget(tokens=t, total_s=1.0), space=space) for t in (1e10, 1.1e10))
    gain = first.choices[0].loss - more.choices[0].loss
    assert f"10 % more training tokens would lower its loss by {gain:.4f}" in first.notes


@pytest.mark.parametrize(("target", "served"), [(2.75, 1e10), (2.7, 1e12), (2.6, 3e11)])
def test_the_cheapest_life_is_the_lifetime_optimum(law: Law, a100: Device, target: float, served: float) -> None:
    wide = find_space(law.axes, d_models=tuple(range(256, 4097, 64)), n_layers=tuple(range(2, 81)), ff_multiple=1)
    best = lifetime_optimal(law, target_loss=target, inference_tokens=served)
    found = plan(law, a100, CHAT, Budget(target_loss=target, inference_tokens=served), space=wide, engine="graph")
    choice = found.choices[0]
    assert choice.lifetime_flops == pytest.approx(best.total_flops, rel=0.01)
    assert choice.params == pytest.approx(best.params, rel=0.1)
    assert choice.tokens == pytest.approx(best.tokens, rel=0.15)
    assert law.loss(choice.shape, tokens=choice.tokens) == pytest.approx(target, rel=1e-9)


def test_serving_more_makes_the_cheapest_model_smaller(law: Law, a100: Device, space: Space) -> None:
    lives = [Budget(target_loss=2.8, inference_tokens=served) for served in (1e9, 1e11, 1e13)]
    params = [plan(law, a100, CHAT, life, space=space).choices[0].params for life in lives]
    assert params == sorted(params, reverse=True)
    assert params[-1] < params[0]


def test_a_loss_out_of_reach_is_said_so(law: Law, a100: Device, space: Space) -> None:
    found = plan(law, a100, CHAT, Budget(target_loss=1.0, inference_tokens=1e9), space=space)
    assert (found.fitting, found.choices, found.front, found.nearest) == (0, (), (), None)
    codec.encode(found)  # nothing infinite in it
    table = candidates(space).law_columns(1.0)
    assert np.isinf(tokens_to(law, table, 1.0)).all()


@pytest.mark.parametrize(
    "given",
    [
        {"train_flops": 1e20},
        {"days": 3.0, "train_flops_per_s": 1e15},
        {"target_loss": 3.0, "inference_tokens": 1e12},
    ],
)
def test_run_mean_losses_do_not_choose_training_tokens(morph: Law, a100: Device, given: dict[str, Any]) -> None:
    with pytest.raises(LawError, match="training losses averaged over each run, so it cannot choose"):
        plan(morph, a100, CHAT, Budget(**given))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.floats(1.0, 1e12),
    seq_len=st.sampled_from([None, 1, 7, 512, 2048, 10_000]),
    rank=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_recipes_are_sound(
    law: Law, a100: Device, space: Space, tokens: float, seq_len: int | None, rank: int, seed: int
) -> None:
    found = plan(law, a100, CHAT, Budget(tokens=tokens), space=space)
    length = 2048 if seq_len is None else seq_len
    if round(tokens) < length:
        with pytest.raises(RecipeError, match="less than one batch"):
            found.recipe(rank, seq_len=seq_len)
        return
    recipe = found.recipe(rank, seq_len=seq_len, seed=seed)
    assert recipe.shape == found.choices[rank - 1].shape
    assert (recipe.tokens, recipe.seq_len, recipe.seed) == (round(tokens), length, seed)
    assert recipe.batch_tokens % length == 0
    assert recipe.steps >= 1
    assert recipe.id == found.recipe(rank, seq_len=seq_len, seed=seed).id


def test_recipes_of_ranks_that_are_not_there(law: Law, a100: Device, space: Space) -> None:
    found = plan(law, a100, CHAT, Budget(tokens=1e9), space=space, top=3)
    assert len({found.recipe(rank).id for rank in (1, 2, 3)}) == 3
    for rank in (0, -1, 4):
        with pytest.raises(BudgetError, match=f"the plan has 3 choices, so no rank {rank}"):
            found.recipe(rank)
    for length in (0, -8):
        with pytest.raises(RecipeError, match=f"seq_len={length}"):
            found.recipe(seq_len=length)


# Bad questions, and narrow ones.


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(PresetError, match=r"no device preset is called 'a100-40g'; did you mean 'a100-40gb'"):
        load_device("a100-40g")


def test_a_law_blind_to_shape_does_not_rank(a100: Device) -> None:
    blind = fit(plant_runs(), "chinchilla", draws=0)
    with pytest.raises(BudgetError, match="reads params, tokens and cannot tell two shapes of one size apart"):
        plan(blind, a100, CHAT, Budget(tokens=1e9))


def test_a_law_of_another_target_does_not_rank(law: Law, a100: Device) -> None:
    with pytest.raises(BudgetError, match="predicts 'accuracy'; a plan ranks shapes by loss"):
        plan(replace(law, target="accuracy"), a100, CHAT, Budget(tokens=1e9))


def test_shapes_larger_than_the_device_name_memory(law: Law, a100: Device) -> None:
    wide = find_space(law.axes, d_models=(4096, 8192), n_layers=(64, 128))
    tiny = a100.with_numbers({"memory_bytes": a100.origins["memory_bytes"]}, memory_bytes=1e9)
    found = plan(law, tiny, CHAT, Budget(tokens=1e9, min_params=1e10), space=wide)
    assert (found.fitting, found.choices) == (0, ())
    assert found.nearest is not None
    assert (found.nearest.name, found.nearest.limit, found.nearest.wanted) == ("4096×64", "memory_bytes", 1e9)
    assert found.nearest.needed > 2 * found.nearest.shape.params


@settings(max_examples=25, deadline=None)
@given(question=questions)
def test_when_nothing_fits_the_nearest_says_how_far_off_it_is(
    law: Law, a100: Device, space: Space, question: Any
) -> None:
    serving, training, engine = question
    serving = {**serving, "total_s": 0.02, "params": 1e7}
    serving.pop("first_token_s", None)
    serving.pop("min_params", None)
    found, _, _ = ask(law, a100, space, (serving, training, engine))
    assert found.choices == ()
    if found.nearest is None:  # no shape reaches the target loss
        assert found.budget.target_loss is not None
        return
    near = found.nearest
    assert near.needed > near.wanted == getattr(found.budget, near.limit)
    stretch = near.needed / near.wanted * (1 + 1e-9)
    for factor, fits in ((stretch, True), (stretch * 0.999, False)):
        wider = {name: min(value * factor, a100.memory_bytes) for name, value in serving.items()}
        again = plan(law, a100, CHAT, Budget(**wider, **training), engine=engine, space=space)
        assert bool(again.choices) == fits


def test_learned_positions_bound_the_workload(law: Law, a100: Device) -> None:
    base = Shape.of(d_model=512, n_layers=8, n_heads=8, vocab_size=VOCAB, position="learned", max_seq_len=512)
    learned = find_space(law.axes, base=base, **SMALL)
    fits = plan(law, a100, Workload(prompt_tokens=256, new_tokens=257), Budget(tokens=1e9), space=learned)
    assert fits.choices[0].shape.position == "learned"
    with pytest.raises(WorkloadError, match="need 513 positions, but the shape learns 512"):
        plan(law, a100, Workload(prompt_tokens=256, new_tokens=258), Budget(tokens=1e9), space=learned)


def test_unknown_engines_and_assumptions_name_the_nearest(law: Law, a100: Device) -> None:
    with pytest.raises(WorkloadError, match=r"unknown engine 'egaer'.*did you mean 'eager'"):
        plan(law, a100, CHAT, Budget(tokens=1e9), engine="egaer")
    with pytest.raises(BudgetError, match=r"no axis 'tide' can be assumed; did you mean 'tied'"):
        plan(law, a100, CHAT, Budget(tokens=1e9), assume=("tide",))


def test_a_single_new_token_is_prefill_alone(law: Law, a100: Device, space: Space) -> None:
    found = plan(law, a100, Workload(new_tokens=1), Budget(tokens=1e9, per_token_s=1e-6, total_s=1.0), space=space)
    for choice in found.choices:
        assert (choice.per_token_s, choice.total_s) == (0.0, choice.first_token_s)
        assert choice.decode_bound in ("launch", "bandwidth", "compute")


def test_no_choices_asked_for(law: Law, a100: Device, space: Space) -> None:
    with pytest.raises(BudgetError, match="top=0"):
        plan(law, a100, CHAT, Budget(tokens=1e9), space=space, top=0)


def test_an_error_law_gives_accuracies_and_takes_a_target(law: Law, a100: Device, space: Space) -> None:
    """Planted: Err = .9 - 2·exp(-.8·L), so an accuracy of .4 is reached at L = ln(2/.3)/.8."""
    losses = np.linspace(2.0, 5.0, 12)
    errors = fit({"loss": losses, "error": 0.9 - 2 * np.exp(-0.8 * losses)}, "error", target="error", draws=20)
    found = plan(law, a100, CHAT, Budget(tokens=1e9), space=space, error_law=errors)
    for choice in found.choices:
        assert choice.accuracy == pytest.approx(0.1 + 2 * np.exp(-0.8 * choice.loss), abs=1e-4)
    aimed = Budget(target_accuracy=0.4, inference_tokens=1e10)
    cheapest = plan(law, a100, CHAT, aimed, space=space, error_law=errors)
    assert cheapest.budget.target_loss == pytest.approx(np.log(2 / 0.3) / 0.8, rel=1e-4)
    with pytest.raises(BudgetError, match="target_accuracy needs an error law"):
        plan(law, a100, CHAT, aimed, space=space)


# On disk.


def test_plans_read_back_what_they_write(eager: Plan, law: Law, a100: Device, space: Space) -> None:
    free = find_space(law.axes, assume=("tied", "sharing"), **SMALL)
    plans = [
        eager,
        plan(law, a100, CHAT, Budget(tokens=1e9, total_s=1.0), space=free),
        plan(law, a100, CHAT, Budget(target_loss=2.8, inference_tokens=1e12), space=space, engine="graph"),
        plan(law, a100, CHAT, Budget(tokens=1e9, total_s=1e-3), space=space),  # nothing fits
    ]
    for found in plans:
        text = json.dumps(codec.encode(found), allow_nan=False)
        again = codec.decode(Plan, json.loads(text))
        assert again == found
        if found.choices:
            assert again.recipe(1).id == found.recipe(1).id


def test_the_same_question_gets_the_same_plan(law: Law, a100: Device, space: Space) -> None:
    one, two = (plan(law, a100, CHAT, Budget(tokens=1e9, total_s=1.0), space=space) for _ in range(2))
    assert codec.dumps(one) == codec.dumps(two)


def test_what_serving_takes_is_said_by_name(law: Law, a100: Device, space: Space) -> None:
    assert SERVING == SERVED
    seen = look(candidates(space), law, a100, CHAT, Budget(tokens=1e9), "eager")
    assert tuple(seen.serving) == SERVED
    assert all(
        re.fullmatch(r"launch|bandwidth|compute", b) for pair in seen.name_bounds(np.array([0, 5])) for b in pair
    )
