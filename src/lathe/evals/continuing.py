"""Continue prompts as texts: with the most probable tokens, until a stop text or a stop token."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.errors import EvaluationError
from lathe.evals.score import Progress
from lathe.evals.scorer import Scorer
from lathe.evals.tree import Ids
from lathe.model.generate import NoNumbers

FIRST_TOKENS = 16
"""Tokens of the first round. The next is twice as long, for the texts that hold no stop yet."""
TOGETHER = 16
"""Prompts that are continued at once, in fixed groups of about one length."""


def continue_texts(
    scorer: Scorer,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Give each prompt's continuation, up to the first of the `stop` texts in it.

    A prompt and its new tokens must fit what the model reads; no other prompt changes a continuation, but by rounding.
    Raises EvaluationError for logits that are no numbers, naming the prompt by `names`.
    """
    found: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
    for at in range(0, len(order), TOGETHER):
        group = order[at : at + TOGETHER]
        try:
            texts = _continue_group(scorer, [prompts[i] for i in group], max_new_tokens=max_new_tokens, stop=stop)
        except NoNumbers as error:
            first = group[error.prompts[0]]
            name = f"prompt {first + 1}" if names is None else names[first]
            raise EvaluationError(f"{name}: {str(error).partition(': ')[2]}") from None
        found |= dict(zip(group, texts, strict=True))
        if progress is not None:
            progress(len(found), len(prompts))
    return [found[i] for i in range(len(prompts))]


def _continue_group(scorer: Scorer, prompts: Sequence[Ids], *, max_new_tokens: int, stop: Sequence[str]) -> list[str]:
    """Continue prompts in rounds: reading a prompt again costs less than tokens behind everyone's stop."""
    new: list[Ids] = [()] * len(prompts)
    open_ones, length = list(range(len(prompts))), FIRST_TOKENS if stop else max_new_tokens
    while open_ones:
        length = min(length, max_new_tokens - len(new[open_ones[0]]))  # all open ones have as many
        try:
            came = scorer.generate(
                [(*prompts[i], *new[i]) for i in open_ones], max_new_tokens=length, stop_tokens=scorer.words.stop_tokens
            )
        except NoNumbers as error:
            raise NoNumbers([open_ones[i] for i in error.prompts]) from None
        for i, tokens in zip(open_ones, came, strict=True):
            new[i] = (*new[i], *tokens)
        open_ones = [
            i
            for i in open_ones
            if len(new[i]) < max_new_tokens
            and new[i][-1] not in scorer.words.stop_tokens
            and not any(one in _decode(scorer, new[i]) for one in stop)
        ]
        length *= 2
    return [_cut(_decode(scorer, tokens), stop) for tokens in new]


def _decode(scorer: Scorer, tokens: Ids) -> str:
    return scorer.words.tokenizer.decode([t for t in tokens if t not in scorer.words.stop_tokens])


def _cut(text: str, stop: Sequence[str]) -> str:
    """Take what stands before the first stop text."""
    return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]
