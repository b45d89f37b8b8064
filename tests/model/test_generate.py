"""Generation: engines agree, neighbours and padding change no token, sampling draws what it should."""

from __future__ import annotations

import shutil

import pytest
import torch

from lathe.errors import DeviceError, WorkloadError
from lathe.model import compiled
from lathe.model.decoder import Decoder
from lathe.model.engine import ENGINES, open_engine
from lathe.model.generate import generate
from lathe.model.init import build
from lathe.model.sampling import Sampling, pick_tokens
from lathe.shape import Shape

PROMPTS = [[1, 2, 3], [5] * 9, [7]]


def tiny(**changed: object) -> Decoder:
    fields = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64, "vocab_size": 50}
    shape = Shape.of(**{**fields, "max_seq_len": 64, **changed})
    return build(shape, scheme="openlm", seed=3).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny()


def continue_slowly(model: Decoder, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
def test_greedy_tokens_are_those_of_the_full_forward_at_every_length(position: str) -> None:
    model = tiny(position=position)
    assert generate(model, PROMPTS, max_new_tokens=12) == [continue_slowly(model, p, 12) for p in PROMPTS]


def test_a_sequence_ends_at_its_stop_token_and_the_others_go_on(model: Decoder) -> None:
    free = generate(model, PROMPTS, max_new_tokens=10)
    stop = free[0][3]
    stopped = generate(model, PROMPTS, max_new_tokens=10, stop_tokens=[stop])
    for long, short in zip(free, stopped, strict=True):
        assert short == (long[: long.index(stop) + 1] if stop in long else long)


def test_tokens_come_one_by_one_in_order(model: Decoder) -> None:
    seen: list[list[int]] = [[], [], []]
    new = generate(model, PROMPTS, max_new_tokens=5, on_token=lambda i, token: seen[i].append(token))
    assert seen == new


def test_an_engine_serves_one_batch_after_another(model: Decoder) -> None:
    engine = open_engine(model, batch=3, slots=24)
    first = generate(model, PROMPTS, max_new_tokens=12, engine=engine)
    generate(model, [[4], [5, 6], [9]], max_new_tokens=3, engine=engine)
    assert generate(model, PROMPTS, max_new_tokens=12, engine=engine) == first


def test_draws_depend_on_the_seed_alone(model: Decoder) -> None:
    def draw(seed: int) -> list[list[int]]:
        return generate(model, PROMPTS, max_new_tokens=12, sampling=Sampling(temperature=1.5), seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_draws_follow_the_kept_probabilities() -> None:
    logits_bv = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20_000, 4)
    drawn = torch.Generator().manual_seed(0)

    def shares(**how: float) -> list[float]:
        tokens_b = pick_tokens(logits_bv, Sampling(**how), drawn)  # pyright: ignore[reportArgumentType]
        return (torch.bincount(tokens_b, minlength=4) / len(tokens_b)).tolist()

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.02)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.02)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.02)
    assert shares(temperature=1.0, top_p=0.76) == pytest.approx([0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0], abs=0.02)
    assert shares(temperature=1.0, top_p=0.01) == [1, 0, 0, 0]
    squares = [0.25, 0.0625, 0.0225, 0.01]
    assert shares(temperature=0.5) == pytest.approx([p / sum(squares) for p in squares], abs=0.02)
    assert shares(temperature=0.0) == [1, 0, 0, 0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_the_compiled_step_gives_the_same_tokens_and_is_kept(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("LATHE_CACHE", str(tmp_path))
    first = open_engine(model, batch=3, slots=24, engine="compile")
    again = open_engine(model, batch=3, slots=24, engine="compile")
    assert (first.reused, again.reused) == (False, True)
    plain = generate(model, PROMPTS, max_new_tokens=12)
    assert generate(model, PROMPTS, max_new_tokens=12, engine=first) == plain
    assert generate(model, PROMPTS, max_new_tokens=12, engine=again) == plain
    with pytest.raises(WorkloadError, match="24 slots are used up"):
        generate(model, PROMPTS, max_new_tokens=40, engine=again)


def test_a_compiled_step_is_named_by_all_it_depends_on(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_engine(model, batch=1, slots=8).cache
    other = tiny()
    name = compiled._name(model, cache)
    assert name == compiled._name(other, cache)
    other.norm.weight[0] += 1e-6  # pyright: ignore[reportOptionalSubscript]
    assert compiled._name(other, cache) != name
    assert compiled._name(model, open_engine(model, batch=1, slots=9).cache) != name
    assert compiled._name(model, open_engine(model, batch=2, slots=8).cache) != name
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert compiled._name(model, cache) != name


@pytest.mark.parametrize(
    ("prompts", "changed", "message"),
    [
        ([], {}, "0 prompts"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1], []], {}, "prompt 2 is empty"),
        ([[1, 50]], {}, "prompt 1 has token 50; the vocabulary has ids 0 to 49"),
        ([[-1]], {}, "token -1"),
        ([[1]], {"engine": "compiel"}, "'compile'"),
    ],
)
def test_bad_requests_are_refused(
    model: Decoder, prompts: list[list[int]], changed: dict[str, object], message: str
) -> None:
    with pytest.raises(WorkloadError, match=message):
        generate(model, prompts, **{"max_new_tokens": 4, **changed})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_more_tokens_than_learned_positions_are_refused(engine: str) -> None:
    with pytest.raises(WorkloadError, match="65 tokens are more than the model's 64 learned positions"):
        generate(tiny(position="learned"), [[1] * 60], max_new_tokens=6, engine=engine)
    if engine == "eager":
        assert len(generate(tiny(position="learned"), [[1] * 60], max_new_tokens=5)[0]) == 5


def test_graphs_need_a_gpu(model: Decoder) -> None:
    with pytest.raises(DeviceError, match="use 'compile' there"):
        generate(model, [[1]], max_new_tokens=4, engine="graph")


def test_a_cache_that_does_not_fit_says_what_would(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("lathe.model.engine.KVCache.allocate", fail)
    with pytest.raises(DeviceError, match=r"cpu ran out of memory: .* need at least .* GB are free"):
        generate(model, [[1]], max_new_tokens=4)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0}])
def test_impossible_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(WorkloadError, match=next(iter(bad))):
        Sampling(**bad)  # pyright: ignore[reportArgumentType]


def test_engines_are_those_that_predictions_know() -> None:
    from lathe.workload import PREDICTED_AS

    assert list(ENGINES) == list(PREDICTED_AS)
