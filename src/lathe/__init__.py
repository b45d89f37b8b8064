"""Lathe shapes language models to their latency budget.

The public names; each is imported when first used, so that `import lathe` costs milliseconds and loads neither
NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lathe.errors import LatheError
    from lathe.laws.compare import compare, leave_sizes_out
    from lathe.laws.downstream import capacity_density, chain
    from lathe.laws.fit import fit
    from lathe.laws.forms import FORMS, Form, Power, Term
    from lathe.laws.hyper import step_law
    from lathe.laws.importers import read_runs
    from lathe.laws.law import Law
    from lathe.laws.optimum import lifetime_optimal, optimal
    from lathe.laws.sigmoid import fit_sigmoid
    from lathe.presets.shapes import load_shape, shape_names
    from lathe.runs import Run
    from lathe.shape import Shape

_HOMES = {
    "lathe.errors": ("LatheError",),
    "lathe.laws.compare": ("compare", "leave_sizes_out"),
    "lathe.laws.downstream": ("capacity_density", "chain"),
    "lathe.laws.sigmoid": ("fit_sigmoid",),
    "lathe.laws.fit": ("fit",),
    "lathe.laws.forms": ("FORMS", "Form", "Power", "Term"),
    "lathe.laws.hyper": ("step_law",),
    "lathe.laws.importers": ("read_runs",),
    "lathe.laws.law": ("Law",),
    "lathe.laws.optimum": ("lifetime_optimal", "optimal"),
    "lathe.presets.shapes": ("load_shape", "shape_names"),
    "lathe.runs": ("Run",),
    "lathe.shape": ("Shape",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FORMS",
    "Form",
    "LatheError",
    "Law",
    "Power",
    "Run",
    "Shape",
    "Term",
    "__version__",
    "capacity_density",
    "chain",
    "compare",
    "fit",
    "fit_sigmoid",
    "leave_sizes_out",
    "lifetime_optimal",
    "load_shape",
    "optimal",
    "read_runs",
    "shape_names",
    "step_law",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lathe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
