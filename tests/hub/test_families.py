"""Every family against transformers: the same logits from the same weights, and the same bits back."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from foreign_models import MODELS, load_model, random_tokens, random_weights, save_model
from safetensors.torch import load_file

from lathe.hub.exporting import export_checkpoint
from lathe.hub.families import FAMILIES
from lathe.hub.family import ROTARY_FIELDS
from lathe.hub.importing import import_checkpoint
from lathe.model import checkpoint
from lathe.model.checkpoint import load_shape_of, save_checkpoint
from lathe.shape import Shape

SMALL = Shape(d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_ff=40, vocab_size=61, max_seq_len=48)
LEARNED = dataclasses.replace(
    SMALL, n_kv_heads=4, norm="layernorm", mlp="gelu-tanh", position="learned", bias="all", tied=True
)
NEOX = dataclasses.replace(LEARNED, mlp="gelu", position="rotary", rotary_fraction=0.4, tied=False)

SHAPES = {
    "llama": (SMALL, "llama"),
    "llama-tied": (dataclasses.replace(SMALL, tied=True, rotary_theta=5e5, norm_eps=1e-6), "llama"),
    "llama-mqa": (dataclasses.replace(SMALL, n_kv_heads=1, bias="all"), "llama"),
    "mistral": (dataclasses.replace(SMALL, d_model=26), "mistral"),
    "qwen2": (dataclasses.replace(SMALL, bias="qkv", d_head=8), "qwen2"),
    "qwen3": (dataclasses.replace(SMALL, qk_norm="head", d_head=10), "qwen3"),
    "gpt2": (LEARNED, "gpt2"),
    "gpt2-exact-gelu": (dataclasses.replace(LEARNED, mlp="gelu", tied=False), "gpt2"),
    "neox": (dataclasses.replace(NEOX, d_model=40, d_head=10), "neox"),
    "neox-parallel": (dataclasses.replace(NEOX, d_model=40, d_head=10, parallel_residual=True), "neox"),
    "opt": (dataclasses.replace(LEARNED, mlp="relu", position_offset=2), "opt"),
    "opt-plain": (dataclasses.replace(LEARNED, norm="layernorm-plain", bias="none", position_offset=2), "opt"),
    "olmo": (dataclasses.replace(SMALL, norm="layernorm-plain"), "olmo"),
    "stablelm": (dataclasses.replace(SMALL, norm="layernorm"), "stablelm"),
}
"""Shapes, and the family each is exported as."""


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_bits(name: str, tmp_path: Path) -> None:
    """The import computes what transformers does, and exporting gives the bits back."""
    model = save_model(name, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    tokens_bt = random_tokens()
    with torch.no_grad():
        wanted = model(tokens_bt).logits
        found = checkpoint.load_model(tmp_path / "ours")(tokens_bt)
    assert wanted.std() > 0.5, "a model whose logits are all alike proves nothing"
    assert (found - wanted).abs().max() <= 1e-4
    export_checkpoint(tmp_path / "ours", tmp_path / "again", family=name.partition("-")[0])
    same_tensors(tmp_path / "theirs", tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "again")(tokens_bt).logits, wanted)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """From Lathe to transformers and back: the same shape and the same bits."""
    shape, family = SHAPES[name]
    save_checkpoint(tmp_path / "ours", shape, random_weights(shape, dtype=dtype))
    done = export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    assert done.architecture == FAMILIES[family].architectures[0]
    assert done.notes == ()
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "again") == shape
    assert load_shape_of(tmp_path / "again") == shape
    same_tensors(tmp_path / "ours", tmp_path / "again")


@pytest.mark.parametrize("name", SHAPES)
def test_exports_compute_the_same(name: str, tmp_path: Path) -> None:
    shape, _ = SHAPES[name]
    save_checkpoint(tmp_path / "ours", shape, random_weights(shape))
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    tokens_bt = random_tokens()
    with torch.no_grad():
        found = load_model(tmp_path / "theirs")(tokens_bt).logits
        assert (found - checkpoint.load_model(tmp_path / "ours")(tokens_bt)).abs().max() <= 1e-4


def same_tensors(one: Path, other: Path) -> None:
    found, wanted = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert sorted(found) == sorted(wanted)
    assert all(found[n].dtype == w.dtype and torch.equal(found[n], w) for n, w in wanted.items())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_tables_cover_every_field(family) -> None:
    """No field of a shape may be forgotten by a table: an export would drop it in silence."""
    known = {*family.fixed, *(key.field for key in family.keys), *family.follows}
    learned = family.fixed["position"] == "learned"
    unread = {"n_layers", "sharing_count"} if not family.exported else set()
    assert {f.name for f in dataclasses.fields(Shape)} - known - unread <= ({*ROTARY_FIELDS} if learned else set())
    assert not family.fixed.keys() & {key.field for key in family.keys}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": None, "rope_theta": 10000.0, "head_dim": None, "mlp_bias": None}),
        ("llama", {"rope_parameters": None, "rope_scaling": None, "num_key_value_heads": None}),
        ("llama", {"rope_scaling": {"type": "default"}, "architectures": None, "torch_dtype": "float32"}),
        ("neox", {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 10000}),
        ("neox", {"rope_parameters": None, "attention_bias": None}),
        ("gpt2", {"tie_word_embeddings": None, "n_inner": None, "n_ctx": 48, "scale_attn_weights": None}),
        ("opt", {"tie_word_embeddings": None, "enable_bias": None, "word_embed_proj_dim": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096, "layer_types": None}),
        ("stablelm", {"rope_parameters": None, "rope_theta": 10000, "partial_rotary_factor": 0.25}),
    ],
)
def test_older_settings(name: str, changes: dict, tmp_path: Path) -> None:
    """What older versions of transformers wrote, or left out, means the same."""
    save_model(name, tmp_path / "theirs")
    wanted = import_checkpoint(tmp_path / "theirs", tmp_path / "new")
    change_config(tmp_path / "theirs", changes)
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "old") == wanted


def change_config(folder: Path, changes: dict) -> None:
    """Change settings of a config.json; None leaves one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("sharing", "stored", "share"), [("immediate", 2, True), ("none", 2, True), ("immediate", 1, False)]
)
def test_mobilellm(sharing: str, stored: int, share: bool, tmp_path: Path) -> None:
    """MobileLLM's own config: tied by share_embedding, and with layer_sharing every block is visited twice."""
    count = 2 if sharing == "immediate" else 1
    shape = dataclasses.replace(
        SMALL, n_layers=stored * count, tied=share, sharing=sharing, sharing_count=count, rotary_theta=10000.0
    )
    weights = random_weights(shape)
    # Llama's file of a model that has the stored blocks once
    plain = dataclasses.replace(shape, n_layers=stored, sharing="none", sharing_count=1)
    save_checkpoint(tmp_path / "plain", plain, weights)
    export_checkpoint(tmp_path / "plain", tmp_path / "theirs")
    own = {"model_type": "mobilellm", "architectures": ["MobileLLMForCausalLM"], "tie_word_embeddings": False}
    change_config(tmp_path / "theirs", own | {"share_embedding": share, "layer_sharing": count == 2})
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours") == shape
    same_tensors(tmp_path / "ours", tmp_path / "plain")
    # its training code writes the same settings under Llama's name
    change_config(tmp_path / "theirs", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "trained") == shape
