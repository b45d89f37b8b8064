"""List the families of models that Lathe reads and writes, and find a model's."""

from __future__ import annotations

from lathe.errors import CheckpointError
from lathe.hub.family import Family
from lathe.hub.gpt2 import GPT2
from lathe.hub.llama import LLAMA, MISTRAL, MOBILELLM, QWEN2, QWEN3
from lathe.hub.neox import NEOX
from lathe.hub.olmo import OLMO
from lathe.hub.opt import OPT
from lathe.hub.settings import Config
from lathe.hub.stablelm import STABLELM

FAMILIES = {
    family.name: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, NEOX, OPT, OLMO, STABLELM, MOBILELLM)
}  # fmt: skip
"""By name. The first that can hold a shape is the one it is exported as."""


def find_family(config: Config, *, source: str) -> Family:
    """Find the family of a config.json, by its architecture or else its model_type. Raises CheckpointError."""
    claimed = config.get("architectures")
    names = [claimed] if isinstance(claimed, str) else claimed or []
    for family in FAMILIES.values():
        if any(config.get(mark) is not None for mark in family.marks):
            return family
    for family in FAMILIES.values():
        if any(name in family.architectures for name in names):
            return family
        if not names and config.get("model_type") == family.model_type:
            return family
    given = ", ".join(map(str, names)) or f"model_type {config.get('model_type')!r}"
    known = ", ".join(name for family in FAMILIES.values() for name in family.architectures)
    raise CheckpointError(f"{source}: Lathe knows no family of models for {given}; it knows {known}")
