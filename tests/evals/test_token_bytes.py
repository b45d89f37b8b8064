"""Bytes of text that tokens stand for: sums over real texts, and what each kind of token counts."""

import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lathe.evals.token_bytes import bits_per_byte, token_bytes

TOKENIZERS = {
    "neox": "tokenizers/gpt_neox_20b.json",
    "gpt2": "tokenizers/gpt2.json",
    "llama": "tokenizers/llama_openllama.json",
    "bpe2048": "tokenizers/bpe2048.json",
    "stories": "weights/stories260K/tokenizer.json",
}
TEXTS = ("text/tinyshakespeare.txt", "text/wikitext2_valid.txt", "text/code_python.jsonl", "text/arxiv.jsonl")
ODD = "naïve  café\t“Zürich”\n\n   日本語 🙂 e\u0301 \x00 ▁ \u00a0"
NONE = np.zeros(0, np.int64)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_of_a_text_stand_for_its_bytes(name: str, shared_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shared_data / TOKENIZERS[name]))
    tokenizer.encode_special_tokens = True
    found = token_bytes(tokenizer)
    assert found is not None
    assert found.lead == (1 if name in ("llama", "stories") else 0)
    for text in (*((shared_data / file).read_text("utf-8")[:60_000] for file in TEXTS), "a", ODD):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        if found.lead:  # normalised with ▁ for spaces, and one before all; a ▁ of the text's own reads as a space
            normal = normal.replace("▁", " ")[1:]
        assert found.count(ids, np.array([0])) == len(normal.encode())
        assert found.count(ids, NONE) == len(normal.encode()) + found.lead
        if name in ("gpt2", "bpe2048") or (name in ("neox", "llama") and text is not ODD):
            assert len(normal.encode()) == len(text.encode())


def test_special_tokens_count_nothing_and_other_added_ones_their_text(shared_data: Path) -> None:
    for name, special, added in (
        ("neox", "<|endoftext|>", "   "),
        ("gpt2", "<|endoftext|>", None),
        ("llama", "[PAD]", None),
    ):
        tokenizer = Tokenizer.from_file(str(shared_data / TOKENIZERS[name]))
        found = token_bytes(tokenizer, vocab_size=60_000)
        assert found is not None
        assert found.bytes_v.shape == (60_000,)
        assert found.bytes_v[tokenizer.token_to_id(special)] == 0
        if added is not None:
            assert found.bytes_v[tokenizer.token_to_id(added)] == len(added)
    assert found.bytes_v[tokenizer.token_to_id("<unk>")] == 0
    assert found.bytes_v[tokenizer.token_to_id("<0x0A>")] == 1
    assert found.bytes_v[tokenizer.token_to_id("▁the")] == 4


def make_unigram(*, prepend: str) -> Tokenizer:
    pieces = [("<unk>", -9.0), ("▁", -2.0), ("a", -1.0), ("▁é", -1.0), ("b", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return tokenizer


@pytest.mark.parametrize(("prepend", "lead"), [("always", 1), ("never", 0)])
def test_unigram(prepend: str, lead: int) -> None:
    tokenizer = make_unigram(prepend=prepend)
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True)])
    found = token_bytes(tokenizer)
    assert found is not None
    assert found.bytes_v.tolist() == [0, 1, 1, 3, 1]
    ids = np.array(tokenizer.encode("ab éa").ids)
    assert found.lead == lead
    assert found.count(ids, np.array([0])) == len("ab éa".encode())


def test_unknown_characters_count_nothing_also_where_their_token_is_not_special() -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "▁": 2}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    found = token_bytes(tokenizer)
    assert found is not None
    assert found.count(np.array(tokenizer.encode("a aé").ids), NONE) == 3


def test_word_pieces_stand_for_no_bytes() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert token_bytes(tokenizer) is None
    tokenizer.decoder = decoders.WordPiece()
    assert token_bytes(tokenizer) is None


def test_bits_per_byte() -> None:
    assert bits_per_byte(800 * math.log(2), 100) == pytest.approx(8)
    assert bits_per_byte(1.0, 0) is None
