"""Llama and the families that keep its names: Mistral, Qwen2, Qwen3, MobileLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lathe.hub.family import UNSHARED, WHOLE_HEADS, Family
from lathe.hub.names import THREE, Names, named
from lathe.hub.settings import TRUTH, Config, Key, Rule, only

NAMES: dict[str, Names] = {
    "embedding": named("model.embed_tokens"),
    "blocks.#.attention_norm": named("model.layers.#.input_layernorm"),
    "blocks.#.attention.qkv": named(
        "model.layers.#.self_attn.q_proj",
        "model.layers.#.self_attn.k_proj",
        "model.layers.#.self_attn.v_proj",
        layout=THREE,
    ),
    "blocks.#.attention.q_norm": named("model.layers.#.self_attn.q_norm"),
    "blocks.#.attention.k_norm": named("model.layers.#.self_attn.k_norm"),
    "blocks.#.attention.out": named("model.layers.#.self_attn.o_proj"),
    "blocks.#.mlp_norm": named("model.layers.#.post_attention_layernorm"),
    "blocks.#.mlp.gate": named("model.layers.#.mlp.gate_proj"),
    "blocks.#.mlp.up": named("model.layers.#.mlp.up_proj"),
    "blocks.#.mlp.down": named("model.layers.#.mlp.down_proj"),
    "norm": named("model.norm"),
    "head": named("lm_head"),
}

SIZES = (
    Key("hidden_size", "d_model"),
    Key("num_hidden_layers", "n_layers"),
    Key("num_attention_heads", "n_heads"),
    Key("num_key_value_heads", "n_kv_heads"),
    Key("intermediate_size", "d_ff"),
    Key("vocab_size", "vocab_size"),
    Key("max_position_embeddings", "max_seq_len"),
)
TIED = Key("tie_word_embeddings", "tied", TRUTH)
SILU = Key("hidden_act", "mlp", {"silu": "swiglu", "swish": "swiglu"})
THETA = (Key("rope_parameters.rope_theta", "rotary_theta"), Key("rope_theta", "rotary_theta"))
"""transformers 5 keeps theta in a table, 4 beside it: each reads its own."""
KEYS = (*SIZES, Key("head_dim", "d_head"), Key("rms_norm_eps", "norm_eps"), TIED, SILU, *THETA)
FIXED = {
    **UNSHARED, "norm": "rmsnorm", "position": "rotary", "position_offset": 0,
    "rotary_fraction": 1.0, "parallel_residual": False,
}  # fmt: skip
DEFAULTS = {"tied": False, "mlp": "swiglu", "rotary_theta": 10000.0, "norm_eps": 1e-6}
BIASES: Mapping[Any, Any] = {False: "none", True: "all"}
HEAD_BIAS = "its output projection would have a bias, which a shape has only with biases on the MLP"


def _no_window(value: Any, config: Config) -> bool:
    longest = config.get("max_position_embeddings")
    return value is None or (isinstance(value, int) and isinstance(longest, int) and value >= longest)


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_type="llama",
    names=NAMES,
    keys=(*KEYS, Key("attention_bias", "bias", BIASES, absent=False), Key("mlp_bias", "bias", BIASES, absent=False)),
    fixed={**FIXED, "qk_norm": "none"},
    defaults=DEFAULTS,
    # transformers 5 refuses any other Llama, even where head_dim is given
    multiples=(("d_model", "n_heads"),),
    rules=WHOLE_HEADS,
    ignored=(r"rotary_emb\.inv_freq$",),
)

MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_type="mistral",
    names=NAMES,
    keys=KEYS,
    fixed={**FIXED, "qk_norm": "none", "bias": "none"},
    defaults=DEFAULTS,
    rules=(
        *WHOLE_HEADS,
        Rule("sliding_window", _no_window, "tokens must attend to all before, up to the longest context"),
    ),
    constants={"sliding_window": None},
    ignored=LLAMA.ignored,
)

NO_WINDOW = Rule("use_sliding_window", only(None, False), "tokens must attend to all before")

QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    names=NAMES,
    keys=KEYS,
    fixed={**FIXED, "qk_norm": "none", "bias": "qkv"},
    defaults=DEFAULTS,
    rules=(*WHOLE_HEADS, NO_WINDOW),
    constants={"use_sliding_window": False},
    ignored=LLAMA.ignored,
)

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    names=NAMES,
    keys=KEYS,
    fixed={**FIXED, "qk_norm": "head", "bias": "none"},
    defaults={**DEFAULTS, "d_head": 128},
    rules=(*WHOLE_HEADS, NO_WINDOW, Rule("attention_bias", only(None, False), HEAD_BIAS)),
    constants={"use_sliding_window": False, "attention_bias": False},
    ignored=LLAMA.ignored,
)


def _visit_twice(found: dict[str, Any]) -> dict[str, Any]:
    """Count visits where MobileLLM counts stored blocks; its -LS models visit each twice in a row."""
    if found.get("sharing") != "immediate" or not isinstance(found.get("n_layers"), int):
        return found
    return {**found, "n_layers": 2 * found["n_layers"], "sharing_count": 2}


MOBILELLM = dataclasses.replace(
    LLAMA,
    name="mobilellm",
    architectures=("MobileLLMForCausalLM",),
    model_type="mobilellm",
    keys=(
        *(key for key in LLAMA.keys if key is not TIED),
        Key("share_embedding", "tied", TRUTH),
        Key("layer_sharing", "sharing", {False: "none", True: "immediate"}),
    ),
    fixed={name: value for name, value in LLAMA.fixed.items() if not name.startswith("sharing")},
    marks=("share_embedding", "layer_sharing"),
    settle=_visit_twice,
    exported=False,
    defaults={**DEFAULTS, "sharing": "none"},
)
"""Liu et al. 2024, arXiv:2402.14905. Its embedding is tied by `share_embedding`, whatever tie_word_embeddings says."""
