"""StableLM: LayerNorm in a Llama; OpenLM's and Morph's shapes fit it."""

from __future__ import annotations

from lathe.hub.family import Family
from lathe.hub.gpt2 import PLAIN_HEADS
from lathe.hub.llama import FIXED, LLAMA, NAMES, SILU, SIZES, THETA, TIED
from lathe.hub.settings import Key, Rule, only

STABLELM = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM",),
    model_type="stablelm",
    names=NAMES,
    keys=(
        *SIZES,
        Key("layer_norm_eps", "norm_eps"),
        Key("use_qkv_bias", "bias", {False: "none", True: "qkv"}),
        SILU,
        TIED,
        *THETA,
        # transformers 5 keeps the fraction in a table, 4 beside it: each reads its own
        Key("rope_parameters.partial_rotary_factor", "rotary_fraction"),
        Key("partial_rotary_factor", "rotary_fraction"),
    ),
    fixed={**{k: v for k, v in FIXED.items() if k != "rotary_fraction"}, "norm": "layernorm", "qk_norm": "none"},
    defaults={
        "norm_eps": 1e-5,
        "bias": "none",
        "mlp": "swiglu",
        "tied": False,
        "rotary_theta": 10000.0,
        "rotary_fraction": 0.25,
    },
    follows={"d_head": PLAIN_HEADS["d_head"]},
    multiples=(("d_model", "n_heads"),),
    rules=(
        Rule("qk_layernorm", only(None, False), "its queries and keys have a norm of their own in every head"),
        Rule("use_parallel_residual", only(None, False), "attention and MLP would share one norm, ours have two"),
    ),
    constants={"qk_layernorm": False, "use_parallel_residual": False},
    ignored=LLAMA.ignored,
)
