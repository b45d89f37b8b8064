"""Every error Lathe raises on purpose.

    LatheError
    ├── ShapeError        a decoder shape that cannot be built
    ├── CodecError        a TOML or JSON document that does not hold the word it should
    ├── RunsError         a table of runs that cannot be read or trusted
    ├── LawError          a law that cannot be fit, or was asked what it cannot answer
    ├── DeviceError       a device whose numbers cannot be, or that lacks what is asked
    ├── WorkloadError     a workload that cannot be, or that a model cannot serve
    ├── BudgetError       a budget that contradicts itself, or asks what cannot be said
    ├── RecipeError       a training that cannot be run
    ├── DataError         text or tokens that cannot be read, stored or mixed as asked
    ├── TrainingError     a training that went wrong, or was stopped
    ├── EvaluationError   an evaluation that cannot be run, or scores that cannot be trusted
    ├── StudyError        a study or a sweep that cannot be carried out
    ├── CheckpointError   a model's files that cannot be read, or do not fit together
    ├── PresetError       a name that no preset has
    ├── MissingExtraError a feature whose optional packages are not installed
    └── MissingBackendError a library to measure with that is not installed

A message says what was given, what was wanted and what to do. `assert` is kept for Lathe's own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LatheError(Exception):
    """Stand at the root of every error that a user can cause and mend."""


class ShapeError(LatheError, ValueError):
    """Refuse a decoder shape that cannot be built."""


class CodecError(LatheError, ValueError):
    """Refuse a document that does not hold the word it should."""


class RunsError(LatheError, ValueError):
    """Refuse a table of runs that cannot be read or trusted."""


class LawError(LatheError, ValueError):
    """Refuse a fit that the runs cannot support, or a question that a law cannot answer."""


class DeviceError(LatheError, ValueError):
    """Refuse a device whose numbers cannot be, or that lacks what is asked of it."""


class WorkloadError(LatheError, ValueError):
    """Refuse a workload that cannot be, or that a model cannot serve."""


class BudgetError(LatheError, ValueError):
    """Refuse a budget that contradicts itself, or a plan that nothing supports."""


class RecipeError(LatheError, ValueError):
    """Refuse a recipe that makes no training."""


class DataError(LatheError, ValueError):
    """Refuse text or tokens that cannot be read, stored or mixed as asked."""


class TrainingError(LatheError, RuntimeError):
    """Report a training that went wrong."""


class Stopped(TrainingError):
    """Report a training that was asked to stop, and has saved what it has."""


class EvaluationError(LatheError, ValueError):
    """Refuse an evaluation that cannot be run, or scores that cannot be trusted."""


class StudyError(LatheError, ValueError):
    """Refuse a study or a sweep that cannot be carried out."""


class CheckpointError(LatheError, ValueError):
    """Refuse a model's files that cannot be read, or that do not fit together."""


class PresetError(LatheError, KeyError):
    """Refuse a name that no preset has."""

    def __str__(self) -> str:  # KeyError would print the repr of its message
        return str(self.args[0]) if self.args else ""


class MissingExtraError(LatheError, ImportError):
    """Name the pip command that adds what a feature needs."""

    def __init__(self, feature: str, *, extra: str) -> None:
        super().__init__(f'{feature} needs packages that are not installed; run: pip install "lathe[{extra}]"')
        self.extra = extra


EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "tokenizers": "train",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "gguf": "hf",
    "torchao": "quant",
    "datatrove": "data",
    "pyarrow": "data",
    "zstandard": "data",
    "lm_eval": "eval",
    "submitit": "slurm",
    "ray": "ray",
    "tensorboard": "track",
    "wandb": "track",
    "trackio": "track",
}
"""Which extra brings a package."""


def explain_import(error: ImportError, *, feature: str) -> ImportError:
    """Turn the failed import of an extra's package into an error that names the pip command; give others back."""
    package = (error.name or "").partition(".")[0]
    return MissingExtraError(feature, extra=EXTRAS[package]) if package in EXTRAS else error


class MissingBackendError(LatheError, ImportError):
    """Name the pip command that adds a library to measure with."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Suggest the known names closest to a misspelt one, as the end of an error message.

    Returns `; did you mean 'a' or 'b'?`, or the sorted list of all names when none is close.
    """
    names = sorted({str(k) for k in known})
    longer = [n for n in names if name and n.lower().startswith(name.lower())]
    close = [*dict.fromkeys([*longer, *difflib.get_close_matches(name, names, n=count, cutoff=0.6)])][:count]
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    return f"; known: {', '.join(names)}" if names else ""
