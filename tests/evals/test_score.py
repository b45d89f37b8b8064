import json
import math
from pathlib import Path

import pytest
import torch
from bigrams import END, make_scorer

from lathe.errors import EvaluationError
from lathe.evals.score import ROUNDING, Score, score_pairs, score_tokens
from lathe.evals.scorer import DecoderScorer, open_scorer
from lathe.model.decoder import Decoder
from lathe.shape import Shape

TABLE = {"a": {"b": 0.5, "c": 0.25}, "b": {"c": 0.75}, "c": {"a": 0.125}, END: {"a": 0.625}}


def make_decoder(**changes) -> DecoderScorer:
    torch.manual_seed(0)
    asked = {
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 50,
        "max_seq_len": 24,
        **changes,
    }
    decoder = Decoder(Shape.of(**asked)).eval().requires_grad_(False)
    return DecoderScorer(decoder, make_scorer(TABLE).words)


def draw_questions(seed: int, count: int = 30) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> tuple[int, ...]:
        length = int(torch.randint(1, most, (), generator=generator))
        return tuple(torch.randint(0, 50, (length,), generator=generator).tolist())

    found = []
    for _ in range(count):
        context = draw(12)
        found.append([(context, draw(7)) for _ in range(4)] + [(draw(20), draw(9))])
    return found


def flat(scores: list[list[Score]]) -> list[Score]:
    return [score for row in scores for score in row]


def plain_log_prob(decoder: Decoder, context, continuation, max_tokens: int) -> float:
    ids = (context + continuation)[-(max_tokens + 1) :]
    logits_tv = decoder(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    scored = len(continuation)
    return float(logits_tv[-scored:].gather(1, torch.tensor(ids[-scored:])[:, None]).sum())


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "learned"}, {"sharing": "immediate", "sharing_count": 2, "n_layers": 4}, {"tied": True}],
)
def test_equals_the_plain_forward_pass(changes):
    scorer = make_decoder(**changes)
    questions = draw_questions(1)
    found = score_tokens(scorer, questions)
    for options, scores in zip(questions, found, strict=True):
        for (context, continuation), score in zip(options, scores, strict=True):
            plain = plain_log_prob(scorer.decoder, context, continuation, 24)
            assert score.log_prob == pytest.approx(plain, abs=1e-5 * score.tokens)
            assert score.tokens == len(continuation)
            assert score.cut == max(0, len(context) + len(continuation) - 25)


def test_batch_order_and_padding_do_not_matter():
    scorer, questions = make_decoder(), draw_questions(2, 70)
    found = score_tokens(scorer, questions)
    for budget in (1, 7 * 24, 64 * 24):
        again = score_tokens(scorer, questions[::-1], batch_tokens=budget)[::-1]
        for a, b in zip(flat(found), flat(again), strict=True):
            assert abs(a.log_prob - b.log_prob) <= ROUNDING * a.tokens
            assert (a.tokens, a.cut, a.greedy) == (b.tokens, b.cut, b.greedy)


def test_without_branching_it_is_the_same():
    scorer, questions = make_decoder(), draw_questions(3)
    found = score_tokens(scorer, questions)
    scorer.branching = False
    for a, b in zip(flat(found), flat(score_tokens(scorer, questions)), strict=True):
        assert abs(a.log_prob - b.log_prob) <= ROUNDING * a.tokens


def test_known_probabilities():
    scorer = make_scorer(TABLE)
    (one, two, three), (four,) = score_pairs(scorer, [[("a", " b c"), ("a", " c"), ("x a ", "c")], [("", "a b")]])
    assert one.log_prob == pytest.approx(math.log(0.5 * 0.75), abs=1e-4)
    assert (one.tokens, one.greedy) == (2, True)
    assert two.log_prob == pytest.approx(math.log(0.25), abs=1e-4)
    assert not two.greedy
    assert three.log_prob == pytest.approx(two.log_prob, abs=1e-5)
    assert four.log_prob == pytest.approx(math.log(0.625 * 0.5), abs=1e-4)


def test_lead():
    ((b, c),) = score_pairs(make_scorer(TABLE), [[("a", " b"), ("a", " c")]])
    assert b.lead == pytest.approx(math.log(2), abs=1e-4)
    assert c.lead == pytest.approx(-math.log(2), abs=1e-4)


def test_an_answer_without_tokens():
    with pytest.raises(EvaluationError, match=r"q 7: the answer ' ' is no token of its own"):
        score_pairs(make_scorer(TABLE), [[("a", " ")]], names=["q 7"])


def test_logits_that_are_no_numbers_name_the_item():
    scorer = make_decoder()
    scorer.decoder.embedding.weight[7] = math.nan
    questions = [[((1, 2), (3,)), ((1, 2), (4,))], [((1, 7), (3,))]]
    with pytest.raises(EvaluationError, match="q 2: the model's logits are no numbers"):
        score_tokens(scorer, questions, names=["q 1", "q 2"])


def test_no_batch():
    with pytest.raises(EvaluationError, match="batch_tokens=0"):
        score_tokens(make_decoder(), draw_questions(0, 1), batch_tokens=0)


class TestReal:
    def test_transformers_and_ours_agree(self, shared_data: Path) -> None:
        folder = shared_data / "weights/stories260K_hf"
        lines = (shared_data / "eval/icl/arc_easy.jsonl").read_text().splitlines()[:12]
        rows = [json.loads(line) for line in lines]
        asked = [[(row["query"], f"\nAnswer: {choice}") for choice in row["choices"]] for row in rows]
        ours = score_pairs(open_scorer(folder), asked)
        theirs = score_pairs(open_scorer(folder, backend="transformers"), asked)
        for a, b in zip(flat(ours), flat(theirs), strict=True):
            assert abs(a.log_prob - b.log_prob) <= ROUNDING * a.tokens
            assert (a.tokens, a.cut, a.greedy) == (b.tokens, b.cut, b.greedy)

    def test_words(self, shared_data: Path) -> None:
        words = open_scorer(shared_data / "weights/stories260K_hf").words
        assert (words.prefix, words.begin_text, words.stop_tokens) == (1, "<s>", (2,))
