"""Small models of every family, made from transformers' own classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from lathe.shape import Shape

VOCAB, CONTEXT = 61, 48
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
SMALL_GPT2 = {"n_embd": 24, "n_head": 4, "n_layer": 2, "vocab_size": VOCAB, "n_positions": CONTEXT, "bos_token_id": 1,
              "eos_token_id": 2}  # fmt: skip
SMALL_OPT = {k: v for k, v in SIZES.items() if k != "intermediate_size"} | {"ffn_dim": 40, "word_embed_proj_dim": 24}
WIDE = SIZES | {"hidden_size": 32}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "llama-gqa-tied": ("Llama", SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 777.0}),
    "llama-wide-heads": ("Llama", SIZES | {"num_key_value_heads": 2, "head_dim": 10}),
    "llama-biases": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "mistral": ("Mistral", SIZES | {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral-odd-heads": ("Mistral", SIZES | {"hidden_size": 26, "num_key_value_heads": 1, "head_dim": 6,
                                              "sliding_window": CONTEXT}),
    "qwen2": ("Qwen2", SIZES | {"num_key_value_heads": 2}),
    "qwen2-tied": ("Qwen2", SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SIZES | {"num_key_value_heads": 2, "head_dim": 8}),
    "qwen3-tied": ("Qwen3", SIZES | {"num_key_value_heads": 4, "head_dim": 4, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", SMALL_GPT2),
    "gpt2-untied": ("GPT2", SMALL_GPT2 | {"tie_word_embeddings": False, "n_inner": 30, "activation_function": "relu"}),
    "neox": ("GPTNeoX", WIDE | {"rotary_pct": 0.25}),
    "neox-serial-tied": ("GPTNeoX", SIZES | {"rotary_pct": 1.0, "use_parallel_residual": False, "rotary_emb_base": 99,
                                             "tie_word_embeddings": True, "hidden_act": "gelu_new"}),
    "opt": ("OPT", SMALL_OPT),
    "opt-plain-untied": ("OPT", SMALL_OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False,
                                             "tie_word_embeddings": False}),
    "olmo": ("Olmo", SIZES | {"num_key_value_heads": 2}),
    "olmo-tied": ("Olmo", SIZES | {"tie_word_embeddings": True}),
    "stablelm": ("StableLm", WIDE | {"num_key_value_heads": 2, "use_qkv_bias": True}),
    "stablelm-whole-heads": ("StableLm", SIZES | {"num_key_value_heads": 4, "partial_rotary_factor": 1.0}),
}  # fmt: skip
"""The class of transformers (before Config and ForCausalLM) and its settings."""


def make_model(name: str, *, seed: int = 0) -> Any:
    """Make a model whose every vector and matrix is random, norms and biases too: none can stand for another."""
    kind, settings = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.7)
    return model


def save_model(name: str, folder: Path) -> Any:
    """Save a random model as its users would, and give it back."""
    model = make_model(name)
    model.save_pretrained(folder)
    return model


def load_model(folder: Path) -> Any:
    """Load a folder as anyone with transformers would."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def random_tokens(*, batch: int = 2, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def random_weights(shape: Shape, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Make random weights of a shape, in our names."""
    from lathe.model.checkpoint import empty_model

    generator = torch.Generator().manual_seed(2)
    wanted = empty_model(shape).state_dict()
    return {name: (torch.randn(w.shape, generator=generator) * 0.4).to(dtype) for name, w in wanted.items()}
