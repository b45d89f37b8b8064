"""GGUF files: written, read back, and refused with reasons; read by transformers and llama.cpp where those can."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lathe.errors import CheckpointError, MissingExtraError, ShapeError
from lathe.hub import gguf as hub_gguf
from lathe.hub.gguf import export_gguf, read_gguf
from lathe.hub.gguf_tokenizer import describe_tokenizer
from lathe.hub.layout import pair_halves, split_qkv
from lathe.hub.llama2c import read_llama2c
from lathe.model.checkpoint import empty_model, save_checkpoint
from lathe.model.decoder import Decoder
from lathe.shape import Shape

TINY = Shape(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_ff=20, vocab_size=30, max_seq_len=64, norm_eps=1e-6,
    rotary_theta=5e5,
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tied": True},
    "qwen2": {"bias": "qkv"},
    "qwen3": {"qk_norm": "head", "tied": True},
}
IDS = torch.randint(0, 30, (2, 11), generator=torch.Generator().manual_seed(5))


def random_weights(shape: Shape, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {name: w.shape for name, w in empty_model(shape).state_dict().items()}
    return {
        name: (0.3 * torch.randn(size, generator=generator) + ("norm" in name)).to(dtype)
        for name, size in sizes.items()
    }


def checkpoint(folder: Path, shape: Shape = TINY, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    weights = random_weights(shape, dtype=dtype)
    save_checkpoint(folder, shape, weights)
    return weights


def model_of(shape: Shape, weights: dict[str, Tensor]) -> Decoder:
    model = empty_model(shape)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    checkpoint(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


class TestRoundTrip:
    @pytest.mark.parametrize("kind", list(KINDS))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_every_bit_comes_back(self, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
        shape = dataclasses.replace(TINY, **KINDS[kind])
        weights = checkpoint(tmp_path / "model", shape, dtype=dtype)
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
        found, again = read_gguf(tmp_path / "m.gguf")
        assert found == shape
        assert again.keys() == weights.keys()
        for name, w in weights.items():
            assert again[name].dtype == (torch.float32 if w.dim() == 1 else dtype)
            assert torch.equal(again[name].to(dtype), w), name
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    @pytest.mark.parametrize("sharing", ["immediate", "all-over", "reverse"])
    def test_shared_layers_are_written_out(self, tmp_path: Path, sharing: Any) -> None:
        shape = dataclasses.replace(TINY, n_layers=4, sharing=sharing, sharing_count=2)
        weights = checkpoint(tmp_path / "model", shape)
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
        found, again = read_gguf(tmp_path / "m.gguf")
        assert found == dataclasses.replace(shape, sharing="none", sharing_count=1)
        assert torch.equal(model_of(found, again)(IDS), model_of(shape, weights)(IDS))

    def test_what_stands_in_the_file(self, tmp_path: Path) -> None:
        weights = checkpoint(tmp_path / "model", dtype=torch.float16)
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
        reader = gguf.GGUFReader(tmp_path / "m.gguf")
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert fields == {
            "general.architecture": "llama",
            "general.name": "model",
            "general.file_type": 1,
            "llama.context_length": 64,
            "llama.embedding_length": 16,
            "llama.block_count": 2,
            "llama.feed_forward_length": 20,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
            "llama.attention.key_length": 6,
            "llama.attention.value_length": 6,
            "llama.rope.dimension_count": 6,
            "llama.vocab_size": 30,
            "llama.rope.freq_base": 5e5,
            "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
            "tokenizer.ggml.model": "none",
        }
        block = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        names = {f"blk.{i}.{name}.weight" for i in range(2) for name in block}
        found = {t.name: t for t in reader.tensors}
        assert found.keys() == names | {"token_embd.weight", "output_norm.weight", "output.weight"}
        assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
        q, _, v = split_qkv(weights["blocks.1.attention.qkv.weight"], TINY)
        assert np.array_equal(found["blk.1.attn_q.weight"].data, pair_halves(q, 4).numpy())
        assert np.array_equal(found["blk.1.attn_v.weight"].data, v.numpy())


@pytest.mark.parametrize("kind", list(KINDS))
def test_transformers_reads_the_same_model(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    # it reads key_length for llama only: the others have d_model / n_heads, and Qwen3's 128
    d_head = {"qwen2": 4, "qwen3": 128}.get(kind, TINY.d_head)
    shape = dataclasses.replace(TINY, d_head=d_head, **KINDS[kind])
    weights = checkpoint(tmp_path / "model", shape)
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    with torch.inference_mode():
        assert torch.allclose(theirs.eval()(IDS).logits, model_of(shape, weights)(IDS), atol=1e-4)


def encode_as_sentencepiece(text: str, tokens: list[str], scores: list[float], types: list[int]) -> list[int]:
    """Merge the neighbours whose joint token scores highest, the leftmost of equals; unknown characters as bytes."""
    known = {token: i for i, token in enumerate(tokens) if types[i] in (1, 4)}
    parts = list("▁" + text.replace(" ", "▁"))
    while joints := [
        (-scores[known[joint]], i) for i in range(len(parts) - 1) if (joint := parts[i] + parts[i + 1]) in known
    ]:
        _, at = min(joints)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids: list[int] = []
    for part in parts:
        ids += [known[part]] if part in known else [tokens.index(f"<0x{byte:02X}>") for byte in part.encode()]
    return ids


class TestTrained:
    """The real model, exported: SOURCES.md of the data says what it tells."""

    @pytest.fixture(scope="class")
    @staticmethod
    def weights_folder(shared_data: Path) -> Path:
        return shared_data / "weights"

    @pytest.fixture(scope="class")
    @staticmethod
    def exported(weights_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        shape, weights = read_llama2c(weights_folder / "stories260K" / "stories260K.bin")
        save_checkpoint(folder / "stories", shape, weights, companions=weights_folder / "stories260K_hf")
        export_gguf(folder / "stories", folder / "stories.gguf")
        return folder / "stories.gguf"

    def test_text_and_loss(self, weights_folder: Path, exported: Path) -> None:
        shape, weights = read_gguf(exported)
        before = read_llama2c(weights_folder / "stories260K" / "stories260K.bin")
        assert shape == before[0]
        assert all(torch.equal(w, weights[name]) for name, w in before[1].items())
        model = model_of(shape, weights)
        tokenizer = Tokenizer.from_file(str(weights_folder / "stories260K" / "tokenizer.json"))
        ids = tokenizer.encode("Once upon a time").ids
        text = (weights_folder.parent / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
        ids_bt = torch.tensor(tokenizer.encode(text[:30_000]).ids[:9472]).view(37, 256)
        with torch.inference_mode():
            while len(ids) < 60:
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            losses = model.loss(ids_bt[:, :-1], ids_bt[:, 1:])
        assert tokenizer.decode(ids).startswith(
            "Once upon a time, there was a little girl named Lily. She loved to play"
        )
        assert float(losses.cross_entropy / losses.count) == pytest.approx(1.452, abs=0.002)

    def test_scores_make_the_same_tokens(self, weights_folder: Path, exported: Path) -> None:
        reader = gguf.GGUFReader(exported)
        fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer")}
        tokens, scores, types = (fields[f"tokenizer.ggml.{n}"] for n in ("tokens", "scores", "token_type"))
        assert (types[:4], tokens[3], len(tokens)) == ([2, 3, 3, 6], "<0x00>", 512)
        assert fields["tokenizer.ggml.add_bos_token"] is True
        assert fields["tokenizer.ggml.add_eos_token"] is False
        assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (1, 2)
        tokenizer = Tokenizer.from_file(str(weights_folder / "stories260K" / "tokenizer.json"))
        text = (weights_folder.parent / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
        lines = [" ".join(line.split()) for line in text.splitlines()[:120] if line.strip()] + ["naïve 日本, 7½ %"]
        for line in lines:
            assert [1, *encode_as_sentencepiece(line, tokens, scores, types)] == tokenizer.encode(line).ids, line

    def test_llama_cpp_tells_the_same_story(self, weights_folder: Path, exported: Path) -> None:
        llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        theirs = llama_cpp.Llama(
            str(exported), n_ctx=256, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0
        )
        tokenizer = Tokenizer.from_file(str(weights_folder / "stories260K" / "tokenizer.json"))
        text = "Once upon a time, there was a little girl"
        ids = theirs.tokenize(text.encode())
        assert ids == tokenizer.encode(text).ids
        theirs.eval(ids)
        with torch.inference_mode():
            ours = model_of(*read_gguf(exported))(torch.tensor([ids]))[0]
        assert np.abs(np.array(theirs.scores[: len(ids)]) - ours.numpy()).max() < 1e-3
        theirs.reset()
        told = theirs("Once upon a time", max_tokens=60, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
        assert told.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


def tokenizer_folder(folder: Path, document: dict[str, Any], *, eos: int | None = 0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({} if eos is None else {"eos_token_id": eos}))
    return folder


def byte_level(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"<end>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}
    end = {"id": 0, "content": "<end>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    document = {
        "version": "1.0",
        "added_tokens": [end | {"normalized": False}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    document["model"] = model | changes.pop("model", {})
    return document | changes


def sentencepiece(**changes: Any) -> dict[str, Any]:
    vocab = {"<unk>": 0, "<0x0A>": 1, "▁a": 2, "ab": 3, "▁ab": 4, "▁": 5, "a": 6, "b": 7}
    merges = [["a", "b"], ["▁a", "b"], ["▁", "ab"]]
    model = {"vocab": vocab, "merges": merges, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    document = byte_level(
        added_tokens=[], pre_tokenizer=None, normalizer={"type": "Sequence", "normalizers": steps},
        model=model | changes.pop("model", {}),
    )  # fmt: skip
    return document | changes


class TestTokenizers:
    def test_byte_level(self, tmp_path: Path) -> None:
        shape = dataclasses.replace(TINY, vocab_size=6)
        assert describe_tokenizer(tokenizer_folder(tmp_path, byte_level()), shape) == {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["<end>", "a", "b", "ab", "[PAD4]", "[PAD5]"],
            "tokenizer.ggml.token_type": [3, 1, 1, 1, 5, 5],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": False,
        }

    def test_sentencepiece(self, tmp_path: Path) -> None:
        """The first token has no merges in older conversions; it is the first to be made."""
        shape = dataclasses.replace(TINY, vocab_size=9)
        fields = describe_tokenizer(tokenizer_folder(tmp_path, sentencepiece(), eos=0), shape)
        assert fields["tokenizer.ggml.scores"] == [0.0, 0.0, -0.0, -1.0, -2.0, -3.0, -3.0, -3.0, 0.0]
        assert fields["tokenizer.ggml.token_type"] == [2, 6, 1, 1, 1, 1, 1, 1, 5]
        assert fields["tokenizer.ggml.add_space_prefix"] is True
        assert fields["tokenizer.ggml.unknown_token_id"] == 0
        assert fields["tokenizer.ggml.model"] == "llama"

    def test_names_and_templates_from_its_configuration(self, tmp_path: Path) -> None:
        folder = tokenizer_folder(tmp_path, byte_level(), eos=None)
        config = {"eos_token": {"content": "<end>"}, "pad_token": "b", "chat_template": "{{ messages }}"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        fields = describe_tokenizer(folder, TINY)
        assert fields["tokenizer.ggml.eos_token_id"] == 0
        assert fields["tokenizer.ggml.padding_token_id"] == 2
        assert fields["tokenizer.chat_template"] == "{{ messages }}"

    @pytest.mark.parametrize(
        ("name", "kind", "pre"),
        [("gpt2", "gpt2", "gpt-2"), ("gpt_neox_20b", "gpt2", "gpt-2"), ("llama_openllama", "llama", "default")],
    )
    def test_real_ones(self, tmp_path: Path, shared_data: Path, name: str, kind: str, pre: str) -> None:
        tokenizer_folder(tmp_path, {})
        shutil.copyfile(shared_data / "tokenizers" / f"{name}.json", tmp_path / "tokenizer.json")
        fields = describe_tokenizer(tmp_path, dataclasses.replace(TINY, vocab_size=50432))
        assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == (kind, pre)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        last = tokenizer.get_vocab_size() - 1
        assert fields["tokenizer.ggml.tokens"][last] == tokenizer.id_to_token(last)
        assert fields["tokenizer.ggml.add_bos_token"] is (name == "llama_openllama")

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (byte_level(normalizer={"type": "Lowercase"}), "its normalizer Lowercase has no place"),
            (byte_level(pre_tokenizer={"type": "Whitespace"}), "no name for its splitting, Whitespace"),
            (byte_level(pre_tokenizer=None), "no name for its splitting, nothing"),
            (
                byte_level(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
                "puts a space before a text",
            ),
            (byte_level(model={"ignore_merges": True}), "ignore_merges=True, where llama.cpp's gpt-2 has False"),
            (byte_level(model={"end_of_word_suffix": "</w>"}), "has end_of_word_suffix='</w>'"),
            (
                byte_level(model={"type": "WordLevel", "unk_token": "a", "merges": []}),
                "its model is WordLevel; GGUF holds BPE",
            ),
            (
                sentencepiece(model={"merges": [["▁a", "b"], ["a", "b"], ["▁", "ab"]]}),
                "those that make one token do not stand together",
            ),
            (sentencepiece(model={"merges": [["a", "b"], ["▁a", "b"]]}), "'▁' and 'ab' never make '▁ab'"),
            (sentencepiece(normalizer={"type": "NFKC"}), "its normalizer NFKC"),
            (sentencepiece(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "split": True}), "Metaspace has no"),
        ],
    )
    def test_refused(self, tmp_path: Path, document: dict[str, Any], message: str) -> None:
        if document["model"]["type"] == "WordLevel":
            document["model"].pop("merges")
        with pytest.raises(CheckpointError, match=message):
            describe_tokenizer(tokenizer_folder(tmp_path, document), TINY)

    def test_the_end_must_be_said(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="does not say which token ends a text"):
            describe_tokenizer(tokenizer_folder(tmp_path, byte_level(), eos=None), TINY)

    def test_ids_beyond_the_embedding(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="largest id is 3, but the embedding has 2 rows"):
            describe_tokenizer(tokenizer_folder(tmp_path, byte_level()), dataclasses.replace(TINY, vocab_size=2))


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"norm": "layernorm"}, r"norm=layernorm \(wanted rmsnorm\)"),
            ({"mlp": "gelu", "parallel_residual": True}, "mlp=gelu .*, parallel_residual=True"),
            ({"position": "learned"}, "position=learned"),
            ({"d_head": 8, "rotary_fraction": 0.5}, "rotary_fraction=0.5"),
            ({"bias": "all"}, "bias=all with qk_norm=none .llama: bias=none"),
            ({"bias": "qkv", "qk_norm": "head"}, "bias=qkv with qk_norm=head"),
            ({"qk_norm": "full"}, "bias=none with qk_norm=full"),
        ],
    )
    def test_shapes(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        checkpoint(tmp_path / "model", dataclasses.replace(TINY, **changes))
        with pytest.raises(ShapeError, match=message):
            export_gguf(tmp_path / "model", tmp_path / "m.gguf")

    def test_dtype(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / "model", dtype=torch.float64)
        with pytest.raises(CheckpointError, match=r"holds torch.float64; GGUF holds"):
            export_gguf(tmp_path / "model", tmp_path / "m.gguf")

    def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint(tmp_path / "model")
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(MissingExtraError, match=r"lathe\[hf\]"):
            export_gguf(tmp_path / "model", tmp_path / "m.gguf")
        with pytest.raises(MissingExtraError, match=r"lathe\[hf\]"):
            read_gguf(tmp_path / "m.gguf")


class TestFaults:
    def test_a_file_that_comes_back_different_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Path
    ) -> None:
        before, write = written.read_bytes(), hub_gguf._write

        def damage(package: Any, path: Path, fields: Any, tensors: Any) -> None:
            write(package, path, fields, tensors)
            content = bytearray(path.read_bytes())
            content[content.index(b"llama.rope.freq_base") + 26] ^= 1
            content[-40] ^= 1
            path.write_bytes(content)

        monkeypatch.setattr(hub_gguf, "_write", damage)
        with pytest.raises(CheckpointError, match=r"read back, llama.rope.freq_base, output_norm.weight differ|differ"):
            export_gguf(tmp_path / "model", written)
        assert written.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    def test_no_place_to_write(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / "model")
        with pytest.raises(CheckpointError, match="cannot be written: No such file"):
            export_gguf(tmp_path / "model", tmp_path / "none" / "m.gguf")

    def test_damaged_files(self, written: Path) -> None:
        whole = written.read_bytes()
        for content in (b"", b"GGUF", b"x" * 64, whole[:200], whole[:-64], whole[: len(whole) // 2]):
            written.write_bytes(content)
            with pytest.raises(CheckpointError, match="no whole GGUF file"):
                read_gguf(written)
        with pytest.raises(CheckpointError, match="there is no file"):
            read_gguf(written.with_name("none.gguf"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f, t: f.update({"general.architecture": "gemma"}), "holds a gemma model; Lathe reads llama, qwen2"),
            (lambda f, t: f.update({"llama.rope.scaling.type": "yarn"}), "rope.scaling.type=yarn"),
            (lambda f, t: f.update({"llama.attention.sliding_window": 4096}), "sliding_window=4096"),
            (lambda f, t: f.update({"llama.expert_count": 8}), "expert_count=8"),
            (lambda f, t: f.update({"llama.rope.dimension_count": 4}), "rope.dimension_count=4"),
            (
                lambda f, t: f.update({"llama.attention.head_count_kv": 3}),
                "n_heads=4 is not a multiple of n_kv_heads=3",
            ),
            (lambda f, t: f.pop("llama.block_count"), "block_count=None"),
            (lambda f, t: f.update({"llama.attention.head_count": [4, 2]}), r"head_count=\[4, 2\]"),
            (lambda f, t: f.pop("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon=None"),
            (lambda f, t: t.update({"rope_freqs.weight": torch.ones(3)}), "rope_freqs.weight is in no such decoder"),
            (lambda f, t: t.pop("blk.1.attn_k.weight"), "blk.1.attn_k.weight is missing, wanted"),
            (
                lambda f, t: f.update({"llama.feed_forward_length": 21}),
                r"ffn_gate.weight is \(20, 16\), wanted \(21, 16\)",
            ),
        ],
    )
    def test_models_that_lathe_lacks(
        self, written: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], message: str
    ) -> None:
        reader = gguf.GGUFReader(written)
        fields = {n: field.contents() for n, field in reader.fields.items() if not n.startswith("GGUF.")}
        tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
        del reader
        change(fields, tensors)
        hub_gguf._write(gguf, written, fields, tensors)
        with pytest.raises(CheckpointError, match=message):
            read_gguf(written)

    def test_quantised(self, tmp_path: Path) -> None:
        shape = dataclasses.replace(TINY, d_model=32, d_ff=32, tied=True)
        checkpoint(tmp_path / "model", shape)
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
        reader = gguf.GGUFReader(tmp_path / "m.gguf")
        writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
        hold = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                hold[type(field.contents())](name, field.contents())
        for t in reader.tensors:
            small = t.name == "blk.0.ffn_up.weight"
            data = gguf.quantize(t.data, gguf.GGMLQuantizationType.Q8_0) if small else t.data
            writer.add_tensor(t.name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if small else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match=r"blk.0.ffn_up.weight is quantised \(Q8_0\)"):
            read_gguf(tmp_path / "q.gguf")
