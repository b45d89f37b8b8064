"""GPT-2: learned positions, biases, and matrices kept input by output (Conv1D)."""

from __future__ import annotations

from lathe.hub.family import UNSHARED, Family
from lathe.hub.llama import TIED
from lathe.hub.names import TURNED, TURNED_QKV, Names, named
from lathe.hub.settings import Key, Rule, only
from lathe.shape import Shape

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh",
               "relu": "relu"}  # fmt: skip
"""What transformers calls the activations of MLPs without a gate; gelu_fast is GPT-2's formula, multiplied out."""

NAMES: dict[str, Names] = {
    "embedding": named("transformer.wte"),
    "positions": named("transformer.wpe"),
    "blocks.#.attention_norm": named("transformer.h.#.ln_1"),
    "blocks.#.attention.qkv": named("transformer.h.#.attn.c_attn", layout=TURNED_QKV),
    "blocks.#.attention.out": named("transformer.h.#.attn.c_proj", layout=TURNED),
    "blocks.#.mlp_norm": named("transformer.h.#.ln_2"),
    "blocks.#.mlp.up": named("transformer.h.#.mlp.c_fc", layout=TURNED),
    "blocks.#.mlp.down": named("transformer.h.#.mlp.c_proj", layout=TURNED),
    "norm": named("transformer.ln_f"),
    "head": named("lm_head"),
}


def _heads(shape: Shape) -> int:
    return shape.n_heads


def _split_width(shape: Shape) -> int:
    return shape.d_model // shape.n_heads


PLAIN_HEADS = {
    "n_kv_heads": (_heads, "as many as n_heads"),
    "d_head": (_split_width, "d_model / n_heads"),
}
"""Families older than grouped queries and free head widths."""

GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    model_type="gpt2",
    names=NAMES,
    keys=(
        Key("n_embd", "d_model"),
        Key("n_layer", "n_layers"),
        Key("n_head", "n_heads"),
        Key("n_inner", "d_ff"),
        Key("vocab_size", "vocab_size"),
        Key("n_positions", "max_seq_len"),
        Key("layer_norm_epsilon", "norm_eps"),
        Key("activation_function", "mlp", {**ACTIVATIONS}),
        TIED,
    ),
    fixed={
        **UNSHARED,
        "norm": "layernorm",
        "position": "learned",
        "position_offset": 0,
        "qk_norm": "none",
        "bias": "all",
        "parallel_residual": False,
    },
    defaults={"norm_eps": 1e-5, "mlp": "gelu-tanh", "tied": True},
    follows=PLAIN_HEADS,
    derived=("d_ff",),
    multiples=(("d_model", "n_heads"),),
    rules=(
        Rule("scale_attn_weights", only(None, True), "scores must be divided by the root of d_head"),
        Rule("scale_attn_by_inverse_layer_idx", only(None, False), "scores must not depend on the layer's number"),
        Rule("add_cross_attention", only(None, False), "it reads an encoder's states"),
    ),
    aliases=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    ignored=(r"\.attn\.(masked_)?bias$",),
)
