"""Read what OpenLM writes about a training beside its checkpoints, and what it means for a shape.

`params.txt` holds every flag of the training, a line each; it stands in the run's folder, the checkpoints in
`checkpoints/` under it. A model configuration is a JSON file like those of open_lm/model_configs; where both name a
setting, the configuration holds (open_lm/model.py, `create_params`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe.documents import parse_json
from lathe.errors import CheckpointError, nearest
from lathe.presets.shapes import shape_presets

PARAMS = "params.txt"
COUNTS = {"hidden_dim": "d_model", "n_layers": "n_layers", "n_heads": "n_heads", "vocab_size": "vocab_size"}
COUNTS |= {"seq_len": "max_seq_len"}
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "model_norm": (
        "norm",
        {
            "default_layer_norm": "layernorm",
            "lp_layer_norm": "layernorm",
            "gain_only_lp_layer_norm": "layernorm-gain",
            "gain_only_layer_norm": "layernorm-gain",
            "no_wb_layer_norm": "layernorm-plain",
            "rms_norm": "rmsnorm",
        },
    ),
    "qk_norm": ("qk_norm", {False: "none", True: "full"}),
    "weight_tying": ("tied", {False: False, True: True}),
    "positional_embedding_type": (
        "position",
        {"rotary": "rotary", "llama_rotary": "rotary", "head_rotary": "none", "none": "none"},
    ),
    "rotary_old": ("position", {True: "none"}),
    "ffn_type": ("mlp", {"swiglu": "swiglu", "swiglu_torch": "swiglu", "gelu": "gelu"}),
}
"""Which field of a shape a setting decides, and how."""
REFUSED: dict[str, tuple[Any, str]] = {
    "post_embed_norm": (False, "it normalises the embedding, which Lathe's decoders do not do"),
    "moe_freq": (0, "it is a mixture of experts; Lathe's decoders are dense"),
    "attn_name": (
        ("auto", "torch_attn", "xformers_attn", "xformers_attn_variable_length"),
        "its attention is not softmax's",
    ),
}
"""The values that Lathe can compute, and why not others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold the shape's fields that are settled, whether rotary pairs are neighbours, and where it all was read."""

    fields: dict[str, Any]
    pairs: bool
    source: str


def read_settings(checkpoint: Path) -> Settings:
    """Read the settings beside a checkpoint; none if there are none. Raises CheckpointError for such as Lathe lacks."""
    params = next((p for p in (checkpoint.parent / PARAMS, checkpoint.parent.parent / PARAMS) if p.is_file()), None)
    flags = parse_params(params.read_text(encoding="utf-8", errors="replace")) if params else {}
    model = str(flags.get("model", ""))
    config = _find_config([checkpoint.parent, *([params.parent] if params else [])], model=Path(model).stem)
    values = flags | (parse_json(config.read_text(encoding="utf-8"), source=str(config)) if config else {})
    source = " and ".join(str(p) for p in (params, config) if p) or "OpenLM's defaults"
    for name, (allowed, reason) in REFUSED.items():
        value = values.get(name)
        if value is not None and value not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise CheckpointError(f"{source}: {name}: {value}: {reason}")
    fields = {ours: values[name] for name, ours in COUNTS.items() if type(values.get(name)) is int}
    if "n_heads" not in fields and model in shape_presets():
        fields["n_heads"] = shape_presets()[model].shape.n_heads
    for name, (ours, meaning) in WORDS.items():
        value = values.get(name)
        if value in meaning:
            fields[ours] = meaning[value]
        elif value is not None and name != "rotary_old":
            raise CheckpointError(f"{source}: {name}: {value} is none that Lathe has{nearest(str(value), meaning)}")
    return Settings(fields=fields, pairs=values.get("positional_embedding_type") == "llama_rotary", source=source)


def parse_params(text: str) -> dict[str, Any]:
    """Read the lines `name: value` of params.txt; truth values and whole numbers become those, None is left out."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        if colon and value != "None":
            found[name] = {"True": True, "False": False}.get(value, int(value) if value.isdigit() else value)
    return found


def _find_config(folders: list[Path], *, model: str) -> Path | None:
    """Find the one model configuration in folders, by the model's name where there are several."""
    files = sorted({file for folder in folders for file in folder.glob("*.json")})
    found = [file for file in files if '"hidden_dim"' in file.read_text(encoding="utf-8", errors="replace")]
    named = [file for file in found if file.stem == model]
    if len(named or found) > 1:
        raise CheckpointError(
            f"{', '.join(str(f) for f in found)} are all model configurations; leave the checkpoint's own there"
        )
    return next(iter(named or found), None)
