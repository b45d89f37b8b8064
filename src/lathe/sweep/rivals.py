"""Set the chosen shape beside those that people would have picked: predicted, not trained."""

from __future__ import annotations

import numpy as np

from lathe.design.candidates import candidates
from lathe.design.choice import Plan
from lathe.latency.roofline import predict_latency
from lathe.laws.axes import shape_columns
from lathe.laws.law import Law
from lathe.shape import Shape, count_params
from lathe.studies import Candidate, Rival
from lathe.sweep.stages import make_space
from lathe.sweep.study import Study

HABIT = 64.0
"""Units of width a layer of common decoders of moderate size: GPT-2's 117M has 64, its 345M 43."""
CLOSE = 0.1
"""How near in params a rival is, as a share of the chosen shape's."""


def find_rivals(study: Study, plan: Plan, law: Law, chosen: Candidate | None) -> tuple[Rival, ...]:
    """Find shapes of about the chosen one's params: by habit, the deepest, and the best if time did not count."""
    if chosen is None:
        return ()
    found = candidates(make_space(study.plan, law), references=False)
    params_n = np.asarray(count_params(found))
    near_n = np.flatnonzero(np.abs(params_n / chosen.shape.params - 1) <= CLOSE)
    if not len(near_n):
        return ()
    near = found.take(near_n)
    aspect_n = np.asarray(near.d_model) / np.asarray(near.n_layers)
    loss_n = law.predict(near.law_columns(study.plan.tokens), assume=study.plan.assume)
    wanted = {
        "by habit": (f"{HABIT:g} units of width a layer", int(np.argmin(np.abs(np.log(aspect_n / HABIT))))),
        "deepest": ("the most layers of its size", int(np.argmin(aspect_n))),
        "lowest loss": ("the lowest loss of its size, whatever time it takes", int(np.argmin(loss_n))),
    }
    rivals: list[Rival] = []
    seen: set[Shape] = {chosen.shape}
    for label, (why, row) in wanted.items():
        shape = near.shape(row)
        if shape in seen:
            continue
        seen.add(shape)
        columns = shape_columns(shape, tokens=study.plan.tokens)
        interval = law.interval(columns, level=study.law.level, assume=study.plan.assume)
        latency = predict_latency(shape, device=plan.device, workload=plan.workload, engine=plan.engine)
        rivals.append(
            Rival(
                name=f"{near.name(row)}, {label}", why=why, shape=shape, predicted_loss=float(loss_n[row]),
                loss_low=float(interval.low[0]), loss_high=float(interval.high[0]), predicted_s=float(latency.total_s),
            )
        )  # fmt: skip
    return tuple(rivals)
