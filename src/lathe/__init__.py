"""Lathe shapes language models to their latency budget.

The public names; each is imported when first used, so that `import lathe` costs milliseconds and loads neither
NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lathe.version import VERSION as __version__

if TYPE_CHECKING:
    from lathe.bench.measure import measure
    from lathe.budget import Budget
    from lathe.design.candidates import candidates, find_space
    from lathe.design.next import next_runs
    from lathe.design.plan import plan
    from lathe.device import Device
    from lathe.errors import LatheError
    from lathe.evals.evaluate import TaskPlan, TextPlan, evaluate
    from lathe.hub.exporting import export_checkpoint
    from lathe.hub.importing import import_checkpoint
    from lathe.latency.calibrate import calibrate
    from lathe.latency.cost import training_cost
    from lathe.latency.roofline import predict_latency
    from lathe.laws.compare import compare, leave_sizes_out
    from lathe.laws.downstream import capacity_density, chain
    from lathe.laws.fit import fit
    from lathe.laws.forms import FORMS, Form, Power, Term
    from lathe.laws.hyper import step_law
    from lathe.laws.importers import read_runs
    from lathe.laws.law import Law
    from lathe.laws.optimum import lifetime_optimal, optimal
    from lathe.laws.sigmoid import fit_sigmoid
    from lathe.model.checkpoint import load_model, save_checkpoint
    from lathe.model.decoder import Decoder
    from lathe.model.generate import generate
    from lathe.model.init import build
    from lathe.model.sampling import Sampling
    from lathe.presets.devices import device_names, load_device
    from lathe.presets.shapes import load_shape, shape_names
    from lathe.recipe import Recipe
    from lathe.runs import Run
    from lathe.shape import Shape
    from lathe.workload import Latency, Workload

_HOMES = {
    "lathe.bench.measure": ("measure",),
    "lathe.budget": ("Budget",),
    "lathe.design.candidates": ("candidates", "find_space"),
    "lathe.design.next": ("next_runs",),
    "lathe.design.plan": ("plan",),
    "lathe.device": ("Device",),
    "lathe.errors": ("LatheError",),
    "lathe.evals.evaluate": ("TaskPlan", "TextPlan", "evaluate"),
    "lathe.hub.exporting": ("export_checkpoint",),
    "lathe.hub.importing": ("import_checkpoint",),
    "lathe.latency.calibrate": ("calibrate",),
    "lathe.latency.cost": ("training_cost",),
    "lathe.latency.roofline": ("predict_latency",),
    "lathe.laws.compare": ("compare", "leave_sizes_out"),
    "lathe.laws.downstream": ("capacity_density", "chain"),
    "lathe.laws.fit": ("fit",),
    "lathe.laws.forms": ("FORMS", "Form", "Power", "Term"),
    "lathe.laws.hyper": ("step_law",),
    "lathe.laws.importers": ("read_runs",),
    "lathe.laws.law": ("Law",),
    "lathe.laws.optimum": ("lifetime_optimal", "optimal"),
    "lathe.laws.sigmoid": ("fit_sigmoid",),
    "lathe.model.checkpoint": ("load_model", "save_checkpoint"),
    "lathe.model.decoder": ("Decoder",),
    "lathe.model.generate": ("generate",),
    "lathe.model.init": ("build",),
    "lathe.model.sampling": ("Sampling",),
    "lathe.presets.devices": ("device_names", "load_device"),
    "lathe.presets.shapes": ("load_shape", "shape_names"),
    "lathe.recipe": ("Recipe",),
    "lathe.runs": ("Run",),
    "lathe.shape": ("Shape",),
    "lathe.workload": ("Latency", "Workload"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FORMS",
    "Budget",
    "Decoder",
    "Device",
    "Form",
    "Latency",
    "LatheError",
    "Law",
    "Power",
    "Recipe",
    "Run",
    "Sampling",
    "Shape",
    "TaskPlan",
    "Term",
    "TextPlan",
    "Workload",
    "__version__",
    "build",
    "calibrate",
    "candidates",
    "capacity_density",
    "chain",
    "compare",
    "device_names",
    "evaluate",
    "export_checkpoint",
    "find_space",
    "fit",
    "fit_sigmoid",
    "generate",
    "import_checkpoint",
    "leave_sizes_out",
    "lifetime_optimal",
    "load_device",
    "load_model",
    "load_shape",
    "measure",
    "next_runs",
    "optimal",
    "plan",
    "predict_latency",
    "read_runs",
    "save_checkpoint",
    "shape_names",
    "step_law",
    "training_cost",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lathe' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from lathe.errors import explain_import

        raise explain_import(error, feature=f"lathe.{name}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
