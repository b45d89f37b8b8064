"""Ask a model a task's questions, and judge its answers.

In fp32 no pick depends on the batch, its order or its padding: these move a log-probability by rounding, and where two
options are closer than rounding could move them, the question is scored again by itself, which is always the same
computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lathe.errors import EvaluationError
from lathe.evals.answers_text import score_text
from lathe.evals.continuing import continue_texts
from lathe.evals.encode import encode_texts
from lathe.evals.items import Question
from lathe.evals.results import ItemResult
from lathe.evals.score import ROUNDING, Progress, Score, score_pairs
from lathe.evals.scorer import Scorer
from lathe.evals.tasks import Task

Normalise = Callable[[Score, str, Score | None], float]

NORMALISE: dict[str, Normalise] = {
    "sum": lambda score, text, bare: score.log_prob,
    "token": lambda score, text, bare: score.log_prob / score.tokens,
    "byte": lambda score, text, bare: score.log_prob / max(1, len(text.strip().encode())),
    "unconditional": lambda score, text, bare: score.log_prob - (bare.log_prob if bare else 0.0),
}
"""What a pick maximises, from an option's score, its text, and its score without the context."""


def answer_questions(
    scorer: Scorer,
    task: Task,
    questions: Sequence[Question],
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[ItemResult]:
    """Give the model's answer to each question of a task.

    Raises EvaluationError for an answer without tokens and for logits that are no numbers, naming the item.
    """
    if task.kind == "generation":
        return _generate(scorer, task, questions, progress)
    asked = [[*q.pairs, *q.unconditional] for q in questions]
    names = [f"{task.name}, item {q.number}" for q in questions]
    found = score_pairs(scorer, asked, batch_tokens=batch_tokens, names=names, progress=progress)
    results = []
    for question, pairs, name, scores in zip(questions, asked, names, found, strict=True):
        if _is_close(task, question, scores):
            (scores,) = score_pairs(scorer, [pairs], batch_tokens=1, names=[name])
        results.append(_judge(task, question, scores))
    return results


def _normalise(task: Task, question: Question, scores: Sequence[Score]) -> list[float]:
    options = len(question.pairs)
    bare = scores[options:] or [None] * options
    return [
        NORMALISE[task.normalisation](score, text, without)
        for score, (_, text), without in zip(scores, question.pairs, bare, strict=False)
    ]


def _is_close(task: Task, question: Question, scores: Sequence[Score]) -> bool:
    """Say whether rounding could change the answer."""
    if len(question.pairs) == 1:
        return abs(scores[0].lead) < 2 * ROUNDING
    values = np.array(_normalise(task, question, scores))
    # what rounding may do to a sum it may do to a normalised score, divided as that is
    moved = ROUNDING * np.array([s.tokens for s in scores]).max() * np.array(_scales(task, question, scores))
    best = int(values.argmax())
    rest = np.delete(values + moved, best)
    return bool(values[best] - moved[best] <= rest.max())


def _scales(task: Task, question: Question, scores: Sequence[Score]) -> list[float]:
    """Give what one nat more of each option's log-probability adds to its normalised score."""
    if task.normalisation == "unconditional":
        return [2.0] * len(question.pairs)  # of two scores, both may move
    return [
        NORMALISE[task.normalisation](Score(1.0, score.tokens, 0.0, 0), text, None)
        for score, (_, text) in zip(scores, question.pairs, strict=False)
    ]


def _judge(task: Task, question: Question, scores: Sequence[Score]) -> ItemResult:
    options = len(question.pairs)
    values = _normalise(task, question, scores)
    pick = int(np.argmax(values))
    return ItemResult(
        number=question.number,
        gold=question.gold,
        pick=pick,
        correct=scores[0].greedy if options == 1 else pick == question.gold,
        log_probs=tuple(score.log_prob for score in scores[:options]),
        tokens=tuple(score.tokens for score in scores[:options]),
        scores=tuple(values),
        cut=max(score.cut for score in scores),
        category=question.category,
    )


def _generate(scorer: Scorer, task: Task, questions: Sequence[Question], progress: Progress | None) -> list[ItemResult]:
    """Continue each prompt greedily until a stop text or token, and compare what came with the answers."""
    room = None if scorer.max_tokens is None else scorer.max_tokens - task.max_new_tokens
    if room is not None and room < 1:
        raise EvaluationError(
            f"{task.name} generates {task.max_new_tokens} tokens, and the model reads {scorer.max_tokens}; lower the "
            "task's max_new_tokens"
        )
    texts = [question.pairs[0][0].rstrip(" ") for question in questions]
    ids_of = encode_texts(scorer, list(dict.fromkeys(texts)))
    prompts = [ids_of[text] for text in texts]
    cuts = [0 if room is None else max(0, len(prompt) - room) for prompt in prompts]
    kept = [prompt[cut:] for prompt, cut in zip(prompts, cuts, strict=True)]
    names = [f"{task.name}, item {question.number}" for question in questions]
    found = continue_texts(
        scorer, kept, max_new_tokens=task.max_new_tokens, stop=task.stop, names=names, progress=progress
    )
    return [
        ItemResult(
            number=question.number, gold=0, pick=0, correct=score_text(text, question.answers, task), cut=cut,
            category=question.category, text=text,
        )
        for question, text, cut in zip(questions, found, cuts, strict=True)
    ]  # fmt: skip
