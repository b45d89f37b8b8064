"""Watch a run: what each step gave goes to the meter, to metrics.jsonl, to the terminal and to trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.evals.analysis import Analysis
from lathe.evals.loss import HeldOut
from lathe.recipe import Recipe
from lathe.train.conditions import EnergyMeter
from lathe.train.execution import Execution
from lathe.train.live import LiveLine
from lathe.train.mesh import Mesh
from lathe.train.meter import METRICS, Meter, MetricsFile, Peak
from lathe.train.spikes import SpikeWatch
from lathe.train.trackers import Tracked, Trackers


class Watch:
    """Hold what watches one run; every rank has one, and the main one writes. Use it as a context.

    `step` is that which training goes on from, with the states that `meter` and `spikes` had there, and the energy
    spent so far. `peak` is one device's; `teacher_flops` are a teacher's for a token.
    """

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        folder: Path,
        mesh: Mesh,
        *,
        name: str,
        step: int,
        meter: Mapping[str, Any],
        spikes: Mapping[str, Any],
        energy_j: float | None,
        peak: Peak,
        teacher_flops: float,
        report: Callable[[str], None],
    ) -> None:
        self._recipe, self._execution, self._mesh, self._stack = recipe, execution, mesh, ExitStack()
        self.peak, self._teacher_flops = peak, teacher_flops
        self._energy, self._energy_before_j = EnergyMeter(mesh.device), energy_j or 0.0
        self._go_on(meter, spikes)
        self._file: MetricsFile | None = None
        self._began = self._got = time.perf_counter()
        if not mesh.is_main:
            return
        self._file = MetricsFile(folder / METRICS, step=step, report=report)
        self._stack.callback(self._file.close)
        tracked = Tracked(folder, name, recipe.id, codec.encode(recipe), step)
        self._trackers = Trackers(execution.trackers, tracked, report=report)
        self._stack.callback(self._trackers.close)
        self._live = self._stack.enter_context(LiveLine(steps=recipe.steps, log_every=execution.log_every))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def energy_j(self) -> float | None:
        """Give the energy spent since the run began, None where nothing counts it."""
        used = self._energy.read()
        return None if used is None else self._energy_before_j + used

    def begin(self) -> None:
        """Start a step's clock."""
        self._began = time.perf_counter()

    def got_batch(self) -> None:
        """Note that the step's data are there."""
        self._got = time.perf_counter()

    def step(
        self, step: int, *, loss: float, z: float, divergence: float | None, grad_norm: float, lr: float, tokens: int
    ) -> None:
        """Count a step that is done."""
        row = self.meter.measure(
            step, loss=loss, z=z, divergence=divergence, grad_norm=grad_norm, lr=lr, tokens=tokens,
            seconds=time.perf_counter() - self._began, data_wait_s=self._got - self._began,
        )  # fmt: skip
        if self._file is not None:
            self._file.write("step", row)
            self._live.step(row)
            if step % self._execution.log_every == 0 or step == self._recipe.steps:
                self._trackers.log(row, step)
                self._energy.read()  # its counters overflow

    def evaluated(self, step: int, losses: Mapping[str, HeldOut]) -> None:
        """Note held-out losses."""
        if self._file is not None:
            self._file.write("evaluation", {"step": step, "losses": codec.encode(losses)})
            self._live.evaluated({name: one.loss for name, one in losses.items()})
            self._trackers.log({"held_out": {name: one.loss for name, one in losses.items()}}, step)

    def analysed(self, step: int, found: Analysis) -> None:
        """Note what the layers do."""
        if self._file is not None:
            self._file.write("analysis", {"step": step, "analysis": codec.encode(found)})
            told = {"effective_depth": found.effective_depth, "lazy_layers": len(found.lazy_visits)}
            self._trackers.log({"analysis": told}, step)

    def event(self, step: int, **values: Any) -> None:
        """Note what happened after a step."""
        if self._file is not None:
            self._file.write("event", {"step": step, **values})

    def flush(self) -> None:
        """Put all lines on the disk."""
        if self._file is not None:
            self._file.flush(sync=True)

    def rewind(self, step: int, *, meter: Mapping[str, Any], spikes: Mapping[str, Any]) -> None:
        """Forget what came after a step."""
        self._go_on(meter, spikes)
        if self._file is not None:
            self._file.rewind(step)

    def _go_on(self, meter: Mapping[str, Any], spikes: Mapping[str, Any]) -> None:
        recipe, asked, mesh = self._recipe, self._execution, self._mesh
        self.meter = Meter(
            recipe.shape, seq_len=recipe.seq_len, device=mesh.device, peak=self.peak, world=mesh.world,
            teacher_flops=self._teacher_flops, state=meter,
        )  # fmt: skip
        self.spikes = SpikeWatch(spike=asked.spike, window=asked.spike_window, state=spikes)
