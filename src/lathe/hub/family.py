"""Hold a foreign family of models: its names, its settings, and what all its members have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lathe.errors import CheckpointError, LatheError
from lathe.hub.names import Names
from lathe.hub.settings import Config, Key, Rule, check_rules, look_up, only, read_fields, write_keys
from lathe.shape import Shape

ROTARY_FIELDS = ("rotary_theta", "rotary_fraction")
UNSHARED = {"sharing": "none", "sharing_count": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describe a family of models as Hugging Face's transformers keeps them.

    `fixed`, `keys` and `defaults` give a shape's fields: what holds for every member, what config.json says, and what
    it means by saying nothing (fields in `derived` then follow as in `Shape.of`). `follows` names fields that follow
    from others in every member, with how; `multiples` fields that must be whole multiples of others. `rules` refuse
    what no shape can hold; `constants` are written as they are. `aliases` are patterns of other spellings of the names,
    `ignored` patterns of tensors that hold no weights. `marks` are settings that only this family has, whatever
    architecture a file claims; `settle` ends the reading of fields. A family whose models need code that transformers
    does not have is not `exported`.
    """

    name: str
    architectures: tuple[str, ...]
    model_type: str
    names: Mapping[str, Names]
    keys: tuple[Key, ...]
    fixed: Mapping[str, Any]
    follows: Mapping[str, tuple[Callable[[Shape], int], str]] = field(default_factory=dict)
    multiples: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[str, ...] = ("n_kv_heads", "d_head")
    rules: tuple[Rule, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    settle: Callable[[dict[str, Any]], dict[str, Any]] = dict
    exported: bool = True


def _default_rope(value: Any, config: Config) -> bool:
    kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, Mapping) else "default"
    plain = not isinstance(value, Mapping) or not any(isinstance(v, Mapping) for v in value.values())
    return kind == "default" and plain


def _full_attention(value: Any, config: Config) -> bool:
    return value is None or (isinstance(value, list) and all(kind == "full_attention" for kind in value))


_SCALED = "Lathe's decoder does not scale or cap its states, scores and logits"
RULES = (
    Rule("quantization_config", only(None), "the weights are quantised; import the model they were made from"),
    Rule("rope_scaling", _default_rope, "Lathe rotates alike in every layer, without scaling"),
    Rule("rope_parameters", _default_rope, "Lathe rotates alike in every layer, without scaling"),
    Rule("layer_types", _full_attention, "every layer must attend to all tokens before"),
    Rule("attn_logit_softcapping", only(None), _SCALED),
    Rule("final_logit_softcapping", only(None), _SCALED),
    Rule("logit_scale", only(None, 1, 1.0), _SCALED),
    Rule("logits_scaling", only(None, 1, 1.0), _SCALED),
    Rule("attention_multiplier", only(None), _SCALED),
    Rule("embedding_multiplier", only(None, 1, 1.0), _SCALED),
    Rule("residual_multiplier", only(None, 1, 1.0), _SCALED),
)
"""What no shape holds, in any family."""

ALL_ROTATED = "all of a head is rotated in this family"
WHOLE_HEADS = (
    Rule("partial_rotary_factor", only(None, 1, 1.0), ALL_ROTATED),
    Rule("rope_parameters.partial_rotary_factor", only(None, 1, 1.0), ALL_ROTATED),
)


def read_shape(family: Family, config: Config, *, source: str) -> Shape:
    """Read the shape that a config.json describes. Raises CheckpointError."""
    check_rules(config, (*RULES, *family.rules), source=source)
    said = read_fields(config, family.keys, source=source)
    found = {**family.fixed, **family.defaults, **family.settle(said)}
    needed = [key for key in family.keys if key.field not in (*found, *family.derived)]
    if needed:
        raise CheckpointError(f"{source} lacks {needed[0].name}; a {family.name} model needs it")
    try:
        return Shape.of(**found)
    except LatheError as error:
        raise CheckpointError(f"{source}: {error}") from None


def write_config(family: Family, shape: Shape) -> dict[str, Any]:
    """Write the config.json of a shape that the family can hold, but for tokens and dtype."""
    head = {"architectures": [family.architectures[0]], "model_type": family.model_type}
    config = {**head, **write_keys(shape, family.keys), **family.constants}
    if look_up(config, "rope_parameters") is not None:
        config["rope_parameters"]["rope_type"] = "default"
    return config


def list_obstacles(family: Family, shape: Shape) -> list[str]:
    """Say, field by field, what of a shape the family cannot hold; nothing if it holds it."""
    holds: dict[str, list[Any]] = {name: [value] for name, value in family.fixed.items()}
    for key in family.keys:
        if key.values is not None:
            holds.setdefault(key.field, list(dict.fromkeys(key.values.values())))
    idle = () if shape.position == "rotary" else ROTARY_FIELDS
    found = [
        f"{name}={getattr(shape, name)!r} (it has {' or '.join(map(repr, values))})"
        for name, values in holds.items()
        if name not in idle and getattr(shape, name) not in values
    ]
    found += [
        f"{name}={getattr(shape, name)} (it has {words})"
        for name, (follow, words) in family.follows.items()
        if getattr(shape, name) != follow(shape)
    ]
    return found + [
        f"{name}={getattr(shape, name)} (it has a multiple of {unit}={getattr(shape, unit)})"
        for name, unit in family.multiples
        if getattr(shape, name) % getattr(shape, unit)
    ]
