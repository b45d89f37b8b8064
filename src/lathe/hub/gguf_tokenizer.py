"""Say a tokenizer in GGUF's words, as llama.cpp reads them.

GGUF knows a tokenizer by kind, not by rule: `gpt2` is byte-level BPE with merges and one of the splittings that
llama.cpp has by name (`pre`); `llama` is SentencePiece's BPE, which merges the neighbours whose joint token has the
highest score. Hugging Face keeps merges for both. llama.cpp neither normalises to NFC nor removes extra
spaces (the file says the latter), so such texts may come out as other tokens there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lathe.errors import CheckpointError
from lathe.hub.folders import read_json
from lathe.model.checkpoint import GENERATION, TOKENIZER, load_tokenizer
from lathe.shape import Shape

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The kinds of tokens (llama.cpp's `llama_token_type`)."""
SPACE = "▁"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTINGS: dict[tuple[Any, ...], tuple[str, bool]] = {
    (("ByteLevel", True),): ("gpt-2", False),
    (("Digits", True), ("ByteLevel", True)): ("smollm", False),
    (("Split", _WORDS.format(digits=r"\p{N}{1,3}")), ("ByteLevel", False)): ("llama-bpe", True),
    (("Split", _WORDS.format(digits=r"\p{N}")), ("ByteLevel", False)): ("qwen2", False),
}
"""llama.cpp's name of each pre-tokenizer, and whether whole words that are tokens are taken without merging."""
WHITESPACE = ({"Regex": "^ +| +$"}, {"Regex": " {2,}"})
"""What SentencePiece's removal of extra spaces becomes in a tokenizer.json."""

Fields = dict[str, Any]


def describe_tokenizer(folder: str | Path, shape: Shape) -> Fields:
    """Give GGUF's fields for a checkpoint's tokenizer; ids beyond its vocabulary are filled with unused tokens.

    Without a tokenizer the file is one for token ids only. Raises CheckpointError for a tokenizer that GGUF cannot
    hold.
    """
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        return {"tokenizer.ggml.model": "none"}
    tokenizer = load_tokenizer(folder, shape)
    document = read_json(path)
    model, added = document.get("model") or {}, document.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise _refuse(path, f"its model is {model.get('type')}; GGUF holds BPE, byte-level or SentencePiece's")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refuse(path, f"its BPE has {name}={model[name]!r}")
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokens = [f"[PAD{i}]" for i in range(shape.vocab_size)]
    types = [UNUSED] * shape.vocab_size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for row in added:
        tokens[row["id"]], types[row["id"]] = row["content"], CONTROL if row.get("special") else USER_DEFINED
    fields: Fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if model.get("byte_fallback"):
        fields |= _sentencepiece(document, merges, tokens, types, path)
    else:
        fields |= _byte_level(document, merges, path)
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return fields | _special_tokens(Path(folder), tokenizer.token_to_id, before=plain, after=whole)


def _byte_level(document: Mapping[str, Any], merges: list[tuple[str, ...]], path: Path) -> Fields:
    normalizer = (document.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _refuse(path, f"its normalizer {normalizer} has no place in GGUF")
    steps = tuple(_split_step(step, path) for step in _steps(document.get("pre_tokenizer"), "pretokenizers"))
    if steps not in SPLITTINGS:
        told = ", ".join(f"{kind}({detail})" for kind, detail in steps) or "nothing"
        raise _refuse(path, f"llama.cpp has no name for its splitting, {told}")
    name, whole_words = SPLITTINGS[steps]
    if bool(document["model"].get("ignore_merges")) != whole_words:
        raise _refuse(path, f"ignore_merges={not whole_words}, where llama.cpp's {name} has {whole_words}")
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
    return fields | ({"tokenizer.ggml.merges": [" ".join(pair) for pair in merges]} if merges else {})


def _split_step(step: Mapping[str, Any], path: Path) -> tuple[str, Any]:
    kind = step.get("type", "")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise _refuse(path, "it puts a space before a text, which llama.cpp's byte-level BPE does not")
        return kind, step.get("use_regex", True)
    if kind == "Split":
        plain = step.get("behavior") == "Isolated" and not step.get("invert")
        return kind, next(iter(step["pattern"].values())) if plain else f"{step.get('behavior')}"
    return kind, step.get("individual_digits")


def _sentencepiece(
    document: Mapping[str, Any], merges: list[tuple[str, ...]], tokens: list[str], types: list[int], path: Path
) -> Fields:
    """Find the scores that make SentencePiece merge as these merges do, and how spaces are handled."""
    unknown = document["model"].get("unk_token")
    for i, token in enumerate(tokens):
        if token == unknown:
            types[i] = UNKNOWN
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = BYTE
    fields: Fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": score_tokens(tokens, types, merges, path),
        **_space_fields(document, path),
    }
    return fields | ({"tokenizer.ggml.unknown_token_id": tokens.index(unknown)} if unknown in tokens else {})


def score_tokens(tokens: list[str], types: list[int], merges: list[tuple[str, ...]], path: Path) -> list[float]:
    """Score each token by when it is made: merges earlier in the list have higher scores.

    SentencePiece scores tokens and not merges, and merges whatever makes a token. So all merges that make one must
    stand together in the list, and none may be absent; but for the first token's, which transformers' older conversions
    from SentencePiece left out. Raises CheckpointError.
    """
    made = ["".join(pair) for pair in merges]
    known = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (NORMAL, USER_DEFINED)}
    first = min((t for t in known if len(t) > 1), key=known.__getitem__, default="")
    order = {token: rank for rank, token in enumerate(dict.fromkeys([first, *made]))}
    if sum(a != b for a, b in pairwise([first, *made])) + 1 != len(order):
        raise _refuse(path, "its merges are not SentencePiece's: those that make one token do not stand together")
    listed = set(merges)
    for token in known:
        for cut in range(1, len(token) if token != first else 0):
            left, right = token[:cut], token[cut:]
            if left in known and right in known and (left, right) not in listed:
                raise _refuse(path, f"its merges are not SentencePiece's: {left!r} and {right!r} never make {token!r}")
    return [-float(order.get(token, len(order))) if token in known else 0.0 for token in tokens]


def _space_fields(document: Mapping[str, Any], path: Path) -> Fields:
    prefix, squeeze = False, 0
    for step in _steps(document.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": SPACE}:
            prefix = True
        elif step.get("type") == "Replace" and step.get("pattern") in WHITESPACE:
            squeeze += 1
        elif step != {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
            raise _refuse(path, f"its normalizer {step.get('type')} has no place in GGUF")
    for step in _steps(document.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") != "Metaspace" or step.get("replacement") != SPACE or step.get("split", True):
            raise _refuse(path, f"its pre-tokenizer {step.get('type')} has no place in GGUF's SentencePiece")
        prefix = prefix or step.get("prepend_scheme", "always") != "never"
    fields: Fields = {"tokenizer.ggml.add_space_prefix": prefix}
    return fields | ({"tokenizer.ggml.remove_extra_whitespaces": True} if squeeze == len(WHITESPACE) else {})


def _special_tokens(folder: Path, token_to_id: Any, *, before: list[int], after: list[int]) -> Fields:
    """Say which tokens begin and end a text, and whether encoding adds them (compare `before` and `after`)."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    ids: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        named = config.get(f"{name}_token")
        named = named.get("content") if isinstance(named, dict) else named
        given = generation.get(f"{name}_token_id")
        given = given[0] if isinstance(given, list) and given else given
        ids[name] = given if type(given) is int else token_to_id(named) if named else None
    if ids["eos"] is None:
        raise CheckpointError(
            f"{folder} does not say which token ends a text, and readers of GGUF would take any; put eos_token_id into "
            f"{GENERATION}"
        )
    at = next((i for i in range(len(after)) if after[i : i + len(before)] == before), 0)
    if at and ids["bos"] is None:
        ids["bos"] = after[0]
    fields: Fields = {
        "tokenizer.ggml.bos_token_id": ids["eos"] if ids["bos"] is None else ids["bos"],
        "tokenizer.ggml.eos_token_id": ids["eos"],
        "tokenizer.ggml.add_bos_token": at > 0,
        "tokenizer.ggml.add_eos_token": at + len(before) < len(after),
    }
    if ids["pad"] is not None:
        fields["tokenizer.ggml.padding_token_id"] = ids["pad"]
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    return fields | ({"tokenizer.chat_template": template} if isinstance(template, str) and template else {})


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """Take a sequence of normalizers or pre-tokenizers apart."""
    if step is None:
        return []
    return list(step[inner]) if step.get("type") == "Sequence" else [step]


def _refuse(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: GGUF cannot hold this tokenizer: {reason}")
