"""Compare a generated text with the right answers."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lathe.evals.tasks import Match, Task

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _exact(text: str) -> str:
    return text.strip()


def _normalised(text: str) -> str:
    """Leave out case, punctuation, articles and extra white space; what is nothing else stays as it is.

    As in TriviaQA's evaluation, Joshi et al. 2017, arXiv:1705.03551 (SQuAD's closes up where punctuation stood). There
    the answer "A" would be no text.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split()) or text.strip()


MATCHES: dict[Match, Callable[[str], str]] = {"exact": _exact, "normalised": _normalised}
"""What is made of both texts before they are compared."""


def score_text(text: str, answers: Sequence[str], task: Task) -> bool:
    """Say whether a generated text gives one of the answers."""
    compared = MATCHES[task.match]
    return compared(extract_answer(text, task)) in {compared(answer) for answer in answers}


def extract_answer(text: str, task: Task) -> str:
    """Cut a generated text at the first stop, and keep what follows the last `answer_prefix`, if there is one."""
    text = text[: min((at for stop in task.stop if (at := text.find(stop)) >= 0), default=len(text))]
    prefix = task.answer_prefix.strip()
    return text.rpartition(prefix)[2] if prefix else text
