"""Read OpenLM's checkpoints: `.pt` files of mlfoundations/open_lm, with what its tensors and its settings say.

Names and arithmetic: open_lm/model.py (`CustomAttn`, `Block`, `Transformer`), norms.py and positional_embedding/ there.
In short: pre-norm with eps 1e-5, no linear bias; queries, keys and values fused in this order, q_norm and k_norm over
all heads, then rotary positions in halves with theta 10000; xformers' SwiGLU, whose `w12` is gate over up and `w3` is
down (xformers/ops/swiglu_op.py), or GELU.

The tensors say nearly all of the shape: d_head too, through the rotary frequencies kept with them. The rest is in what
`openlm_settings` reads beside the checkpoint; where neither says it, OpenLM's own defaults hold.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lathe.errors import CheckpointError, ShapeError
from lathe.hub.layout import halve_pairs, join_qkv
from lathe.hub.openlm_settings import Settings, read_settings
from lathe.model.checkpoint import check_weights
from lathe.shape import Shape

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DDP, torch.compile, FSDP and activation checkpointing put into names."""
NAMES = {
    "tok_embeddings": "embedding",
    "norm": "norm",
    "output": "head",
    "attention_norm": "attention_norm",
    "attention.q_norm": "attention.q_norm",
    "attention.k_norm": "attention.k_norm",
    "attention.out_proj": "attention.out",
    "ffn_norm": "mlp_norm",
    "feed_forward.w3": "mlp.down",
    "feed_forward.0": "mlp.up",
    "feed_forward.2": "mlp.down",
}
"""Our names of the layers whose tensors are taken as they are."""
QKV, GATE_UP, GELU_UP = "attention.in_proj.weight", "feed_forward.w12.weight", "feed_forward.0.weight"
FREQUENCIES = "attention.pos_embed.inv_freq"
IGNORED = (FREQUENCIES, "_ff_w1.weight", "_ff_w2.weight")
"""Not weights, or (the GELU layers) weights that stand in the file under a second name."""
FOREIGN = {
    "post_embed_norm": "it normalises the embedding, which Lathe's decoders do not do",
    "gate_proj": "its feed-forward layers are GeGLU with biases (gemma_geglu), which Lathe's decoders do not have",
    "experts": "it is a mixture of experts; Lathe's decoders are dense",
    "router": "it is a mixture of experts; Lathe's decoders are dense",
    "backbone": "it is a Mamba, not a decoder with attention",
}
"""Parts of names that tell of what Lathe does not compute."""
SCALAR: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")},
]
"""What numpy's scalars are made of: losses in a checkpoint may be such. They make numbers and run nothing."""


def read_openlm(path: str | Path, *, shape: Shape | None = None) -> tuple[Shape, dict[str, Tensor]]:
    """Read an OpenLM checkpoint, without running anything it holds; the weights keep their dtype.

    `shape` says what the model is where neither tensors nor settings do; it must agree with the tensors. OpenLM's
    `head_rotary` (once `rotary_old`) turns queries and keys of a head by one angle wherever they stand, which changes
    no score: such a model is read as one of position `none`.

    Raises CheckpointError for a file that holds code, is damaged, or is no such model; for a model that Lathe's
    decoders cannot be; or where too little is known.
    """
    path = Path(path)
    tensors = clean_names(load_tensors(path), source=str(path))
    settings = read_settings(path)
    found = infer_shape(tensors, settings, given=shape, source=str(path))
    weights = name_weights(tensors, found, pairs=settings.pairs)
    check_weights(found, {name: tuple(w.shape) for name, w in weights.items()}, source=str(path))
    return found, weights


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a `.pt` file, those under `state_dict` or all of it. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with torch.serialization.safe_globals(NUMBERS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # a newer protocol is no fault
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        reason = (str(error) or type(error).__name__).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()[0]
        named = re.search(r"GLOBAL (\S+)", str(error))  # not torch's words, which advise loading it all the same
        if named or "Unsupported operand" in reason:
            raise CheckpointError(
                f"{path} was not loaded: it holds more than tensors and numbers, and reading the rest would run code "
                f"({named[1] if named else reason}); where you trust the file, save the model's state_dict alone with "
                "torch.save"
            ) from None
        raise CheckpointError(f"{path} is no whole PyTorch file ({reason}); copy it again") from None
    inner = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not isinstance(inner, dict) or not inner or not all(isinstance(w, Tensor) for w in inner.values()):
        about = ", ".join(map(str, content))[:100] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds {about}, and no model's state_dict; OpenLM's are called epoch_N.pt")
    return inner


def clean_names(tensors: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Take wrappers out of names, and refuse models that the names tell are none of ours. Raises CheckpointError."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if foreign := next((part for part in parts if part in FOREIGN), None):
            raise CheckpointError(f"{source} cannot be read: it has {name}: {FOREIGN[foreign]}")
        found[".".join(parts).removeprefix("model.")] = tensor
    for wanted in ("tok_embeddings.weight", f"layers.0.{QKV}"):
        if wanted not in found or found[wanted].dim() != 2:
            raise CheckpointError(f"{source} is no OpenLM model: it has no matrix {wanted}")
    return found


def infer_shape(tensors: dict[str, Tensor], settings: Settings, *, given: Shape | None, source: str) -> Shape:
    """Say what shape tensors and settings make, or check the one given against the tensors. Raises CheckpointError."""
    fixed = fixed_fields(tensors, source=source)
    width = tensors[f"layers.0.{QKV}"].shape[0] // 3
    told = {name: getattr(given, name) for name in Shape.__slots__} if given else settings.fields
    wrong = [f"{n}={told[n]}, but the tensors say {v}" for n, v in fixed.items() if n in told and told[n] != v]
    if given and given.n_heads * given.d_head != width:
        wrong.append(f"n_heads * d_head = {given.n_heads * given.d_head}, but the tensors say {width}")
    if "norm" not in fixed and told.get("norm", "rmsnorm") not in ("rmsnorm", "layernorm-gain"):
        wrong.append(f"norm={told['norm']}, but the tensors' norms have gains and no biases")
    if wrong:
        raise CheckpointError(
            f"{source} is not what {'the shape' if given else settings.source} says: {'; '.join(wrong)}"
        )
    _check_frequencies(tensors, given.rotary_theta if given else 10000.0, source=source)
    if given:
        return given
    fields = {"tied": True, "position": "rotary", "qk_norm": "none"} | told | fixed
    missing = [name for name in ("n_heads", "norm") if name not in fields]
    if missing:
        raise CheckpointError(
            f"{source}: the tensors do not say {' and '.join(missing)}{_hint(missing)}; put the training's params.txt "
            "or the model's configuration (JSON with hidden_dim, n_heads, …) beside it, or give a shape"
        )
    try:
        return Shape(**{"n_kv_heads": fields["n_heads"], "d_head": width // fields["n_heads"], **fields})
    except ShapeError as error:
        raise CheckpointError(f"{source}: {error}") from None


def fixed_fields(tensors: dict[str, Tensor], *, source: str) -> dict[str, Any]:
    """Give the shape's fields that the tensors leave no choice in. Raises CheckpointError."""
    embedding, head = tensors["tok_embeddings.weight"], tensors.get("output.weight")
    gated = f"layers.0.{GATE_UP}" in tensors
    wide = tensors.get(f"layers.0.{GATE_UP if gated else GELU_UP}")
    if wide is None:
        raise CheckpointError(f"{source} is no OpenLM model: layer 0 has neither {GATE_UP} nor {GELU_UP}")
    fields: dict[str, Any] = {
        "d_model": embedding.shape[1],
        "vocab_size": embedding.shape[0],
        "n_layers": 1 + max(layer for name in tensors if (layer := _split_name(name)[0]) is not None),
        "d_ff": wide.shape[0] // (2 if gated else 1),
        "mlp": "swiglu" if gated else "gelu",
        "bias": "none",
        "sharing": "none",
    }
    if head is None or not torch.equal(head, embedding):  # equal ones may be tied or not
        fields["tied"] = head is None
    if half := len(tensors.get(f"layers.0.{FREQUENCIES}", ())):
        fields["n_heads"] = tensors[f"layers.0.{QKV}"].shape[0] // 3 // (2 * half)
    if "norm.weight" not in tensors:
        return fields | {"norm": "layernorm-plain"}
    if "norm.bias" in tensors:
        fields["norm"] = "layernorm"
    return fields | {"qk_norm": "full" if "layers.0.attention.q_norm.weight" in tensors else "none"}


def name_weights(tensors: dict[str, Tensor], shape: Shape, *, pairs: bool) -> dict[str, Tensor]:
    """Give the weights our names and order. `pairs`: the rotary pairs are neighbours, as in Llama's own code.

    Raises CheckpointError for fused matrices that do not come apart.
    """
    weights: dict[str, Tensor] = {}
    width = shape.n_heads * shape.d_head
    for name, tensor in tensors.items():
        layer, inner = _split_name(name)
        prefix = "" if layer is None else f"blocks.{layer}."
        module, _, kind = inner.rpartition(".")
        if (inner == QKV and len(tensor) != 3 * width) or (inner == GATE_UP and len(tensor) != 2 * shape.d_ff):
            raise CheckpointError(
                f"{name} has {len(tensor)} rows, and layer 0's has not; this is no whole OpenLM model"
            )
        if inner == QKV:
            q, k, v = tensor.chunk(3)
            if pairs:
                q, k = halve_pairs(q, shape.n_heads), halve_pairs(k, shape.n_heads)
            weights[f"{prefix}attention.qkv.weight"] = join_qkv(q, k, v, shape)
        elif inner == GATE_UP:
            weights[f"{prefix}mlp.gate.weight"], weights[f"{prefix}mlp.up.weight"] = tensor.chunk(2)
        elif inner not in IGNORED and not (shape.tied and inner == "output.weight"):
            if pairs and module.endswith(("q_norm", "k_norm")) and len(tensor) == width:
                tensor = halve_pairs(tensor, shape.n_heads)
            weights[f"{prefix}{NAMES[module]}.{kind}" if module in NAMES else name] = tensor
    return {name: w.contiguous() for name, w in weights.items()}


def _split_name(name: str) -> tuple[int | None, str]:
    first, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    return (int(number), inner) if first == "layers" and number.isdigit() else (None, name)


def _check_frequencies(tensors: dict[str, Tensor], theta: float, *, source: str) -> None:
    """Refuse rotary frequencies that are not a theta's; kept in bf16, they are off by up to 0.4 %."""
    found = tensors.get(f"layers.0.{FREQUENCIES}")
    if found is None:
        return
    wanted = theta ** -(torch.arange(len(found)) / len(found))
    if not torch.allclose(found.float(), wanted, rtol=0.01):
        raise CheckpointError(
            f"{source}: its rotary frequencies are not those of theta={theta:g}; give a shape with its own"
        )


def _hint(missing: list[str]) -> str:
    return " (gains without biases are RMSNorm's or LayerNorm's)" if "norm" in missing else ""
