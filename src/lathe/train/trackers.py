"""Send metrics to TensorBoard, Weights & Biases or Trackio too; whatever becomes of them, training goes on."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lathe.errors import MissingExtraError, RecipeError, nearest

PROJECT = "lathe"
WANDB_SETTINGS = {"console": "off", "silent": True, "init_timeout": 30.0, "login_timeout": 15.0, "finish_timeout": 60.0}
"""Nothing is captured or printed, and no wait is endless; what a version does not know is left out."""
Report = Callable[[str], None]


class Tracker(Protocol):
    """Take numbers by name and step, until closed."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Tracked(NamedTuple):
    """Say whose metrics they are: `config` is the recipe as JSON, `step` the one that training goes on from."""

    out: Path
    name: str
    run_id: str
    config: dict[str, Any]
    step: int = 0


class TensorBoard:
    """Write event files into the run's folder; those of steps after the one resumed from are overwritten."""

    def __init__(self, tracked: Tracked, report: Report) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = tracked.out / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=tracked.step + 1, flush_secs=10)
        self.writer.add_text("recipe", f"    {json.dumps(tracked.config)}", tracked.step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Write a Weights & Biases run: onto the disk alone unless WANDB_MODE or WANDB_API_KEY say otherwise.

    It never asks for a key. Where the service is not reached, the run is kept on the disk, for `wandb sync`.
    """

    def __init__(self, tracked: Tracked, report: Report) -> None:
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        try:
            self.run = _start_wandb(tracked, mode)
        except Exception as error:  # the network's, the service's, a refused key
            if mode == "offline":
                raise
            report(f"warning: wandb cannot be reached ({_first_line(error)}); its run is kept offline in {tracked.out}")
            self.run = _start_wandb(tracked._replace(run_id=f"{tracked.run_id}-offline"), "offline")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _start_wandb(tracked: Tracked, mode: str) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    settings = {name: value for name, value in WANDB_SETTINGS.items() if name in wandb.Settings.model_fields}
    return wandb.init(
        project=PROJECT, name=tracked.name, id=tracked.run_id, resume="allow", dir=str(tracked.out), mode=mode,
        config=tracked.config, settings=wandb.Settings(**settings),
    )  # fmt: skip


class Trackio:
    """Write into Trackio's local database, which `trackio show` displays; its environment variables count."""

    def __init__(self, tracked: Tracked, report: Report) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(
            project=PROJECT, name=f"{tracked.name}-{tracked.run_id}", resume="allow", config=tracked.config, embed=False
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Tracked, Report], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
"""How each is opened; each needs the package of its name."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown (RecipeError) or not installed (MissingExtraError), before any work is done."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"no tracker is called {name!r}{nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"tracking with {name}", extra="track")


class Trackers:
    """Send numbers to several trackers; one that fails is told of once, and tried again with the next.

    Raises what `check_trackers` raises.
    """

    def __init__(self, names: Sequence[str], tracked: Tracked, *, report: Report = print) -> None:
        check_trackers(names)
        self._report = report
        self._failed: set[str] = set()
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._try(name, lambda name=name: self._open.update({name: TRACKERS[name](tracked, report)}))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the finite numbers among some values; tables within are sent as table/name."""
        numbers = flatten(values)
        for name, tracker in self._open.items():
            self._try(name, lambda tracker=tracker: tracker.log(numbers, step))

    def close(self) -> None:
        """Finish all of them."""
        for name, tracker in self._open.items():
            self._try(name, tracker.close)
        self._open.clear()

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker meets, training goes on
            if name not in self._failed:
                self._report(f"warning: {name} failed ({_first_line(error)}); training goes on")
            self._failed.add(name)


def flatten(values: Mapping[str, Any], *, within: str = "") -> dict[str, float]:
    """Name the finite numbers among values; `step` itself is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, within=f"{within}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value) and name != "step":
            found[f"{within}{name}"] = float(value)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
