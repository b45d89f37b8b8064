"""llama2.c's .bin files: the trained model, planted tensors in both layouts, and files that are not whole."""

import dataclasses
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.hub.layout import split_qkv
from lathe.hub.llama2c import MAGIC, read_llama2c
from lathe.model.attention import rotary_tables, rotate
from lathe.model.checkpoint import check_weights, empty_model
from lathe.model.decoder import Decoder
from lathe.shape import Shape

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
TINY = Shape(d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_head=4, d_ff=12, vocab_size=11, max_seq_len=5)
HALVES = [0, 2, 1, 3]
"""Where llama2.c keeps the rows of a head of four."""


def planted(shape: Shape) -> dict[str, list[Tensor]]:
    """Make tensors under llama2.c's names, one a layer."""
    generator = torch.Generator().manual_seed(7)
    d, q, kv = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    sizes = {
        "embedding": (shape.vocab_size, d), "attention_norm": (d,), "wq": (q, d), "wk": (kv, d), "wv": (kv, d),
        "wo": (d, q), "ffn_norm": (d,), "w1": (shape.d_ff, d), "w2": (d, shape.d_ff), "w3": (shape.d_ff, d),
        "norm": (d,), "freqs": (shape.max_seq_len, shape.d_head), "output": (shape.vocab_size, d),
    }  # fmt: skip
    once = ("embedding", "norm", "freqs", "output")
    return {
        name: [torch.randn(size, generator=generator) for _ in range(1 if name in once else shape.n_layers)]
        for name, size in sizes.items()
    }


def write(path: Path, shape: Shape, tensors: dict[str, list[Tensor]], *, version: int) -> Path:
    blocks = ["wq", "wk", "wv", "wo"]
    mlp = ["w1", "w2", "w3"]
    order = {
        0: ["embedding", "attention_norm", *blocks, "ffn_norm", *mlp, "norm", "freqs"],
        1: ["attention_norm", "ffn_norm", "norm", "embedding", *blocks, *mlp],
    }[version]
    vocab = shape.vocab_size if shape.tied or version else -shape.vocab_size
    header = struct.pack(
        "<7i", shape.d_model, shape.d_ff, shape.n_layers, shape.n_heads, shape.n_kv_heads, vocab, shape.max_seq_len
    )
    if version:
        header = (struct.pack("<Ii", MAGIC, version) + header + bytes([shape.tied])).ljust(256, b"\0")
    names = order if shape.tied else [*order, "output"]
    path.write_bytes(header + b"".join(t.numpy().tobytes() for name in names for t in tensors[name]))
    return path


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_lands_in_its_place(tmp_path: Path, version: int, tied: bool) -> None:
    shape = dataclasses.replace(TINY, tied=tied)
    tensors = planted(shape)
    found, weights = read_llama2c(write(tmp_path / "m.bin", shape, tensors, version=version))
    assert found == shape
    check_weights(shape, {name: tuple(w.shape) for name, w in weights.items()}, source="the file")
    assert torch.equal(weights["embedding.weight"], tensors["embedding"][0])
    assert torch.equal(weights["norm.weight"], tensors["norm"][0])
    assert ("head.weight" in weights) is not tied
    for i in range(shape.n_layers):
        q, k, v = split_qkv(weights[f"blocks.{i}.attention.qkv.weight"], shape)
        wq = tensors["wq"][i]
        assert torch.equal(q, torch.cat([wq[:4][HALVES], wq[4:][HALVES]]))
        assert torch.equal(k, tensors["wk"][i][HALVES])
        assert torch.equal(v, tensors["wv"][i])
        theirs = {"attention_norm": "attention_norm", "wo": "attention.out", "ffn_norm": "mlp_norm"}
        theirs |= {"w1": "mlp.gate", "w2": "mlp.down", "w3": "mlp.up"}
        for name, ours in theirs.items():
            assert torch.equal(weights[f"blocks.{i}.{ours}.weight"], tensors[name][i]), name


def test_rotation_in_pairs_is_rotation_in_halves(tmp_path: Path) -> None:
    """Scores of rotated queries and keys are the same in both layouts."""
    shape, tensors = TINY, planted(TINY)
    _, weights = read_llama2c(write(tmp_path / "m.bin", shape, tensors, version=0))
    x_td = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    angle_te = torch.arange(5)[:, None] * 10000.0 ** -torch.tensor([0.0, 0.5])
    turn_te = torch.polar(torch.ones_like(angle_te), angle_te)

    def turned(rows: Tensor) -> Tensor:
        pairs = torch.view_as_complex((x_td @ rows.T).reshape(5, 2, 2))
        return torch.view_as_real(pairs * turn_te).flatten(1)

    theirs = turned(tensors["wq"][0][:4]) @ turned(tensors["wk"][0]).T
    q, k, _ = split_qkv(weights["blocks.0.attention.qkv.weight"], shape)
    tables = rotary_tables(shape, torch.arange(5)[None], torch.float32)
    assert tables is not None
    ours_q, ours_k = (rotate((x_td @ rows.T)[None, None], *tables)[0, 0] for rows in (q[:4], k))
    assert torch.allclose(ours_q @ ours_k.T, theirs, atol=1e-5)


class TestTrained:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(shared_data: Path) -> Path:
        return shared_data / "weights"

    @pytest.fixture(scope="class")
    @staticmethod
    def model(folder: Path) -> Decoder:
        shape, weights = read_llama2c(folder / "stories260K" / "stories260K.bin")
        assert shape.params == 260_032
        model = empty_model(shape)
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)

    def test_equals_the_hugging_face_folder_bit_for_bit(self, folder: Path, model: Decoder) -> None:
        theirs = load_file(folder / "stories260K_hf" / "model.safetensors")
        mine = model.state_dict()
        names = {
            "input_layernorm": "attention_norm", "self_attn.o_proj": "attention.out",
            "post_attention_layernorm": "mlp_norm", "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up",
            "mlp.down_proj": "mlp.down",
        }  # fmt: skip
        assert torch.equal(theirs["model.embed_tokens.weight"], mine["embedding.weight"])
        assert torch.equal(theirs["model.norm.weight"], mine["norm.weight"])
        for i in range(5):
            for foreign, ours in names.items():
                left = theirs[f"model.layers.{i}.{foreign}.weight"]
                assert torch.equal(left, mine[f"blocks.{i}.{ours}.weight"]), (i, foreign)
            qkv = split_qkv(mine[f"blocks.{i}.attention.qkv.weight"], model.shape)
            for letter, part in zip("qkv", qkv, strict=True):
                assert torch.equal(theirs[f"model.layers.{i}.self_attn.{letter}_proj.weight"], part), (i, letter)

    def test_tells_its_story(self, folder: Path, model: Decoder) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "stories260K" / "tokenizer.json"))
        ids = tokenizer.encode("Once upon a time").ids
        with torch.inference_mode():
            while len(ids) < 90:
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert tokenizer.decode(ids).startswith(STORY)

    def test_loss_on_its_own_kind_of_text(self, folder: Path, model: Decoder) -> None:
        """SOURCES.md of the data gives 1.452 nats a token on 9,472 tokens, here 37 windows of 256."""
        tokenizer = Tokenizer.from_file(str(folder / "stories260K" / "tokenizer.json"))
        text = (folder.parent / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
        ids_bt = torch.tensor(tokenizer.encode(text[:30_000]).ids[:9472]).view(37, 256)
        with torch.inference_mode():
            losses = model.loss(ids_bt[:, :-1], ids_bt[:, 1:])
        assert float(losses.cross_entropy / losses.count) == pytest.approx(1.452, abs=0.002)


class TestFaults:
    def test_cut_short_and_too_long(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.bin", TINY, planted(TINY), version=0)
        whole = path.read_bytes()
        for cut in (whole[:-4], whole[:-1], whole[:28]):
            path.write_bytes(cut)
            with pytest.raises(CheckpointError, match=f"{len(cut)} bytes; .* has {len(whole)}: the file is cut short"):
                read_llama2c(path)
        path.write_bytes(whole + b"more")
        with pytest.raises(CheckpointError, match="4 bytes follow its end"):
            read_llama2c(path)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "0 bytes are too few for a llama2.c header of 28"),
            (b"GGUF" * 20, "no llama2.c model: its header says dim="),
            (struct.pack("<7i", 8, 12, 2, 3, 1, 11, 5), "dim=8, hidden_dim=12, n_layers=2, n_heads=3"),
            (struct.pack("<7i", 8, 12, 0, 2, 1, 11, 5), "n_layers=0"),
            (struct.pack("<7i", -8, 12, 2, 2, 1, 11, 5), "dim=-8"),
            (struct.pack("<7i", 8, 12, 2, 2, 1, 0, 5), "vocab_size=0"),
            (struct.pack("<7i", 12, 12, 2, 4, 3, 11, 5), "n_heads=4 is not a multiple of n_kv_heads=3"),
            (struct.pack("<7i", 2, 12, 2, 2, 1, 11, 5), "rotary positions turn pairs"),
            (struct.pack("<7i", *[2**30] * 7), "rotary|cut short"),
            (struct.pack("<Ii", MAGIC, 2).ljust(256, b"\1"), "version 2 .2 is quantised to int8"),
            (struct.pack("<Ii", MAGIC, 1).ljust(99, b"\1"), "cut short within its header of 256 bytes"),
        ],
    )
    def test_headers_of_no_model(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "m.bin").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            read_llama2c(tmp_path / "m.bin")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="No such file"):
            read_llama2c(tmp_path / "none.bin")
