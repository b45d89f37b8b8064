"""GPT-NeoX and Pythia: rotary positions on part of each head, attention and MLP side by side."""

from __future__ import annotations

from lathe.hub.family import UNSHARED, Family
from lathe.hub.gpt2 import ACTIVATIONS, PLAIN_HEADS
from lathe.hub.llama import TIED
from lathe.hub.names import Names, named
from lathe.hub.settings import TRUTH, Key, Rule, only

NAMES: dict[str, Names] = {
    "embedding": named("gpt_neox.embed_in"),
    "blocks.#.attention_norm": named("gpt_neox.layers.#.input_layernorm"),
    # head by head a query, its key, its value: our order, where every group has one query
    "blocks.#.attention.qkv": named("gpt_neox.layers.#.attention.query_key_value"),
    "blocks.#.attention.out": named("gpt_neox.layers.#.attention.dense"),
    "blocks.#.mlp_norm": named("gpt_neox.layers.#.post_attention_layernorm"),
    "blocks.#.mlp.up": named("gpt_neox.layers.#.mlp.dense_h_to_4h"),
    "blocks.#.mlp.down": named("gpt_neox.layers.#.mlp.dense_4h_to_h"),
    "norm": named("gpt_neox.final_layer_norm"),
    "head": named("embed_out"),
}

NEOX = Family(
    name="neox",
    architectures=("GPTNeoXForCausalLM",),
    model_type="gpt_neox",
    names=NAMES,
    keys=(
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("intermediate_size", "d_ff"),
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "max_seq_len"),
        Key("layer_norm_eps", "norm_eps"),
        Key("hidden_act", "mlp", ACTIVATIONS),
        Key("use_parallel_residual", "parallel_residual", TRUTH),
        # transformers 5 keeps these two in a table, 4 beside it: each reads its own
        Key("rope_parameters.rope_theta", "rotary_theta"),
        Key("rotary_emb_base", "rotary_theta"),
        Key("rope_parameters.partial_rotary_factor", "rotary_fraction"),
        Key("rotary_pct", "rotary_fraction"),
        TIED,
    ),
    fixed={
        **UNSHARED,
        "norm": "layernorm",
        "position": "rotary",
        "position_offset": 0,
        "qk_norm": "none",
        "bias": "all",
    },
    defaults={
        "norm_eps": 1e-5,
        "mlp": "gelu",
        "parallel_residual": True,
        "tied": False,
        "rotary_theta": 10000.0,
        "rotary_fraction": 0.25,
    },
    follows=PLAIN_HEADS,
    derived=(),
    multiples=(("d_model", "n_heads"),),
    rules=(Rule("attention_bias", only(None, True), "a shape's attention has biases where its MLP has them"),),
    constants={"attention_bias": True},
    aliases=((r"^lm_head\.", "embed_out."),),
    ignored=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
