"""OPT: learned positions that begin at row two, ReLU."""

from __future__ import annotations

from typing import Any

from lathe.hub.family import UNSHARED, Family
from lathe.hub.gpt2 import ACTIVATIONS, PLAIN_HEADS
from lathe.hub.llama import TIED
from lathe.hub.names import THREE, Names, named
from lathe.hub.settings import Config, Key, Rule, only

NAMES: dict[str, Names] = {
    "embedding": named("model.decoder.embed_tokens"),
    "positions": named("model.decoder.embed_positions"),
    "blocks.#.attention_norm": named("model.decoder.layers.#.self_attn_layer_norm"),
    "blocks.#.attention.qkv": named(
        "model.decoder.layers.#.self_attn.q_proj",
        "model.decoder.layers.#.self_attn.k_proj",
        "model.decoder.layers.#.self_attn.v_proj",
        layout=THREE,
    ),
    "blocks.#.attention.out": named("model.decoder.layers.#.self_attn.out_proj"),
    "blocks.#.mlp_norm": named("model.decoder.layers.#.final_layer_norm"),
    "blocks.#.mlp.up": named("model.decoder.layers.#.fc1"),
    "blocks.#.mlp.down": named("model.decoder.layers.#.fc2"),
    "norm": named("model.decoder.final_layer_norm"),
    "head": named("lm_head"),
}


def _full_width(value: Any, config: Config) -> bool:
    return value in (None, config.get("hidden_size"))


OPT = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    model_type="opt",
    names=NAMES,
    keys=(
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("ffn_dim", "d_ff"),
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "max_seq_len"),
        Key("activation_function", "mlp", ACTIVATIONS),
        Key("enable_bias", "bias", {True: "all", False: "none"}),
        Key("layer_norm_elementwise_affine", "norm", {True: "layernorm", False: "layernorm-plain"}),
        TIED,
    ),
    fixed={
        **UNSHARED,
        "norm_eps": 1e-5,
        "position": "learned",
        "position_offset": 2,
        "qk_norm": "none",
        "parallel_residual": False,
    },
    defaults={"mlp": "relu", "bias": "all", "norm": "layernorm", "tied": True},
    follows=PLAIN_HEADS,
    derived=(),
    multiples=(("d_model", "n_heads"),),
    rules=(
        Rule("do_layer_norm_before", only(None, True), "a block's norms must come first (OPT-350M's come last)"),
        Rule("word_embed_proj_dim", _full_width, "the embedding must be as wide as hidden_size"),
        Rule("_remove_final_layer_norm", only(None, False), "there must be a final norm"),
    ),
    constants={"do_layer_norm_before": True},
    aliases=((r"^decoder\.", "model.decoder."),),
)
