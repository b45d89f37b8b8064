"""Make a task of held-out text: of four passages, tell the one that a text goes on with."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lathe.data.mixture import load_mixture
from lathe.data.store import Dataset
from lathe.documents import write_atomic
from lathe.errors import EvaluationError
from lathe.evals.tasks import load_catalogue
from lathe.model.checkpoint import load_tokenizer

CONTINUATION = load_catalogue().tasks["continuation"]
CONTEXT_CHARS, ANSWER_CHARS = 240, 60
OPTIONS = 4
TRIES = 50
"""Places to try for one item, since text may be blank."""


def write_continuations(dataset: str | Path, out: str | Path, *, count: int, seed: int = 0) -> int:
    """Write `count` items made from held-out documents of a dataset, or of a mixture's sources, whatever their weights.

    An item is a passage and four that might follow: the one that does, and three from elsewhere in the held-out text.
    The same text and seed give the same items. Raises EvaluationError where the text is too short.
    """
    texts = read_documents(dataset)
    draw = random.Random(seed)
    long = [text for text in texts if len(text) >= CONTEXT_CHARS + ANSWER_CHARS]
    if not long:
        raise EvaluationError(
            f"{dataset}: no held-out document has {CONTEXT_CHARS + ANSWER_CHARS} characters to make an item of; hold "
            "out more text"
        )
    weights = [len(text) for text in long]
    rows = []
    for _ in range(count):
        gold = draw.randrange(OPTIONS)
        places = [_choose_place(draw, long, weights) for _ in range(OPTIONS)]
        text, at = places[gold]
        rows.append(
            {
                "query": text[at - CONTEXT_CHARS : at],
                "choices": [text[at : at + ANSWER_CHARS] for text, at in places],
                "gold": gold,
            }
        )
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def read_documents(dataset: str | Path) -> list[str]:
    """Read the held-out documents of a dataset, or of a mixture's sources in the order of their names, as text."""
    if Path(dataset).suffix in (".toml", ".json"):
        sources = load_mixture(dataset).sources
        return [text for name in sorted(sources) for text in read_documents(sources[name])]
    opened = Dataset(dataset)
    split, tokenizer = opened.split("held-out"), load_tokenizer(dataset)
    ends_d = split.index_nc[:, 0].astype(np.int64)
    begins_d = np.concatenate([[0], ends_d[:-1]])
    return [
        tokenizer.decode(split.read(begin, end - begin).tolist())
        for begin, end in zip(begins_d.tolist(), ends_d.tolist(), strict=True)
    ]


def _choose_place(draw: random.Random, texts: Sequence[str], weights: Sequence[int]) -> tuple[str, int]:
    """Draw a place with a passage before it and one behind, which begins with a word and says something."""
    text, at = texts[0], CONTEXT_CHARS
    for _ in range(TRIES):
        (text,) = draw.choices(texts, weights)
        at = draw.randrange(CONTEXT_CHARS, len(text) - ANSWER_CHARS + 1)
        passage = text[at : at + ANSWER_CHARS]
        if text[at - 1].isspace() and not passage[0].isspace() and sum(c.isalpha() for c in passage) > ANSWER_CHARS / 2:
            break
    return text, at
