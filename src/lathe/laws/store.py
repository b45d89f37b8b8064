"""A law on disk: one JSON document, its forms written out in full, so that it outlives the table they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lathe import codec, documents
from lathe.errors import CodecError
from lathe.laws.axes import Axis
from lathe.laws.choose import Score
from lathe.laws.forms import Form, Objective
from lathe.laws.law import Law, Member

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """A member as JSON holds it: arrays as lists, an infinite standard error as null."""

    form: Form
    theta: list[float]
    theta_se: list[float | None]
    draws: list[list[float]]
    condition: float | None
    cost: float
    weight: float
    interval_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LawRecord:
    """A law as JSON holds it."""

    members: list[MemberRecord]
    ranking: list[Score]
    folds: str
    target: str
    objective: Objective
    loss_kind: str | None
    runs: int
    axes: dict[str, Axis]
    cv: float
    warnings: list[str]
    seed: int


def save(law: Law, path: Path) -> None:
    """Write a law, whole or not at all."""
    members = [
        MemberRecord(
            form=m.form,
            theta=m.theta_p.tolist(),
            theta_se=[float(v) if math.isfinite(v) else None for v in m.theta_se_p],
            draws=m.draws_bp.tolist(),
            condition=m.condition if math.isfinite(m.condition) else None,
            cost=m.cost,
            weight=m.weight,
            interval_weight=m.interval_weight,
        )
        for m in law.members
    ]
    record = LawRecord(
        members=members,
        ranking=list(law.ranking),
        folds=law.folds,
        target=law.target,
        objective=law.objective,
        loss_kind=law.loss_kind,
        runs=law.runs,
        axes=dict(law.axes),
        cv=law.cv,
        warnings=list(law.warnings),
        seed=law.seed,
    )
    codec.save(record, path, kind="law", version=VERSION)


def load(path: Path) -> Law:
    """Read a law back.

    Raises:
        CodecError: the file is truncated, holds something else, was written by a newer version, or contradicts itself.
    """
    body = codec.untag(documents.read_document(path), kind="law", version=VERSION, source=str(path))
    record = codec.decode(LawRecord, body, source=str(path))
    if any(m.weight < 0 or m.interval_weight < 0 for m in record.members):
        raise CodecError(f"{path}: a member has a weight below zero; fit the law again")
    if not any(m.weight > 0 for m in record.members):
        raise CodecError(f"{path}: no member has a weight above zero, so this law predicts nothing; fit it again")
    return Law(
        members=tuple(_member(m, path) for m in record.members),
        ranking=tuple(record.ranking),
        folds=record.folds,
        target=record.target,
        objective=record.objective,
        loss_kind=record.loss_kind,
        runs=record.runs,
        axes=record.axes,
        cv=record.cv,
        warnings=tuple(record.warnings),
        seed=record.seed,
    )


def _member(record: MemberRecord, path: Path) -> Member:
    size = len(record.form.names)
    lengths = {len(record.theta), len(record.theta_se), *(len(d) for d in record.draws)}
    if lengths != {size}:
        raise CodecError(
            f"{path}: form {record.form.name!r} has {size} parameters ({', '.join(record.form.names)}) but the file"
            f" holds vectors of {sorted(lengths)}; fit it again"
        )
    return Member(
        form=record.form,
        theta_p=np.array(record.theta),
        theta_se_p=np.array([math.inf if v is None else v for v in record.theta_se]),
        draws_bp=np.array(record.draws).reshape(-1, size),
        condition=math.inf if record.condition is None else record.condition,
        cost=record.cost,
        weight=record.weight,
        interval_weight=record.interval_weight,
    )
