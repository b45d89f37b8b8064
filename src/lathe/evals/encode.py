"""Turn contexts and continuations into ids, as the field's harness does.

Both are encoded together, and the continuation is what follows the context's own ids: so a tokenizer may treat a word's
beginning as it does in running text. Spaces at a context's end go to the continuation. An empty context is one token:
the one that begins texts, else the one that ends them (EleutherAI, lm-evaluation-harness 0.4, `_encode_pair`).
"""

from __future__ import annotations

from collections.abc import Sequence

from lathe.errors import EvaluationError
from lathe.evals.scorer import Scorer
from lathe.evals.tree import Ids, Option

Pair = tuple[str, str]


def encode_pairs(
    scorer: Scorer, questions: Sequence[Sequence[Pair]], *, names: Sequence[str] | None = None
) -> list[list[Option]]:
    """Encode all questions' options; each text once.

    Raises EvaluationError for a continuation without a token, and for an empty context where no token stands for it.
    """
    moved = [[_move_spaces(*pair) for pair in pairs] for pairs in questions]
    texts = {text for pairs in moved for context, rest in pairs if context for text in (context, context + rest)}
    ids = encode_texts(scorer, list(texts), special=True)
    bare = encode_texts(
        scorer, list({rest for pairs in moved for context, rest in pairs if not context}), special=False
    )
    found = []
    for i, pairs in enumerate(moved):
        options = []
        for context, rest in pairs:
            if context:
                before, whole = ids[context], ids[context + rest]
                option = (before, whole[len(before) :]) if before else _begin(whole, scorer.words.prefix)
            else:
                option = _begin(bare[rest], scorer.words.prefix)
            if not option[1]:
                name = f"item {i + 1}" if names is None else names[i]
                raise EvaluationError(
                    f"{name}: the answer {rest!r} is no token of its own after its question; mend the item, or its "
                    "delimiter"
                )
            options.append(option)
        found.append(options)
    return found


def _move_spaces(context: str, continuation: str) -> Pair:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _begin(ids: Ids, prefix: int | None) -> Option:
    if prefix is None:
        raise EvaluationError(
            "an item has an empty context, and the tokenizer names no token that begins or ends a text; give the "
            "checkpoint a generation_config.json with bos_token_id or eos_token_id"
        )
    return (ids[:1], ids[1:]) if ids[:1] == (prefix,) else ((prefix,), ids)


def encode_texts(scorer: Scorer, texts: list[str], *, special: bool = True) -> dict[str, Ids]:
    """Encode texts; a text that begins with the token for beginnings is not given another."""
    begin = scorer.words.begin_text
    plain = [text for text in texts if not special or (begin and text.startswith(begin))]
    rest = [text for text in texts if special and not (begin and text.startswith(begin))]
    found = {}
    for group, add in ((plain, False), (rest, special)):
        encodings = scorer.words.tokenizer.encode_batch_fast(group, add_special_tokens=add)
        found |= {text: tuple(encoding.ids) for text, encoding in zip(group, encodings, strict=True)}
    return found
