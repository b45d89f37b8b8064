"""OLMo, the first: Llama's names, and LayerNorm without weights."""

from __future__ import annotations

from lathe.hub.family import WHOLE_HEADS, Family
from lathe.hub.llama import DEFAULTS, FIXED, HEAD_BIAS, KEYS, LLAMA, NAMES
from lathe.hub.settings import Rule, only

OLMO = Family(
    name="olmo",
    architectures=("OlmoForCausalLM",),
    model_type="olmo",
    names=NAMES,
    keys=tuple(key for key in KEYS if key.field != "norm_eps"),
    fixed={**FIXED, "norm": "layernorm-plain", "norm_eps": 1e-5, "qk_norm": "none", "bias": "none"},
    defaults={name: value for name, value in DEFAULTS.items() if name != "norm_eps"},
    rules=(
        *WHOLE_HEADS,
        Rule("clip_qkv", only(None), "Lathe's queries, keys and values are not clipped"),
        Rule("attention_bias", only(None, False), HEAD_BIAS),
    ),
    constants={"attention_bias": False, "clip_qkv": None},
    ignored=LLAMA.ignored,
)
