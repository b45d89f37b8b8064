"""Carry a study from its data to the model it chooses; `run_study` reads from top to bottom.

What a stage found is kept in the study's folder (see `lathe.sweep.kept`), so that a study that was killed, or asked
again with something changed, makes only what is not there.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lathe import codec
from lathe.design.choice import Choice
from lathe.errors import BudgetError, StudyError
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.model.checkpoint import WEIGHTS
from lathe.presets.devices import load_device
from lathe.studies import Candidate, StudyResult
from lathe.sweep.candidates import evaluate_candidates, make_recipes, measure_candidates, write_sample
from lathe.sweep.entries import Entry
from lathe.sweep.inputs import check_questions, questions_content
from lathe.sweep.kept import Kept, Made, Reached, hash_words
from lathe.sweep.launchers import make_launcher
from lathe.sweep.layout import CANDIDATES, RESULT, RUNS, STUDY, list_entries, list_stages
from lathe.sweep.mixing import FOLDER as PROXIES
from lathe.sweep.mixing import describe_mixture, make_mixture, mixture_content, proxy_document
from lathe.sweep.rivals import find_rivals
from lathe.sweep.stages import (
    DEVICE,
    LAW,
    MEASUREMENTS,
    PLAN,
    check_reach,
    check_target,
    find_largest,
    hash_named,
    load_plan,
    make_choices,
    make_data,
    make_device,
    make_law,
    summarise_runs,
    text_content,
)
from lathe.sweep.study import Study
from lathe.sweep.sweep import ID_DIGITS, QUIET, sweep
from lathe.sweep.unseen import describe_unseen
from lathe.sweep.verdict import choose, is_within
from lathe.train.execution import Execution
from lathe.train.folder import RUN, hold_folder
from lathe.train.settings import fit_value
from lathe.version import VERSION

Report = Callable[[str], None]


def run_study(
    study: Study, folder: str | Path, *, until: str | None = None, report: Report = print, live: bool = True
) -> StudyResult:
    """Carry out a study in a folder, or what of it is not there yet.

    Args:
        until: the last stage to carry out, one of `list_stages`.
        report: is told what is done.
        live: whether to show trainings as they go.

    Raises:
        Reached: the last stage that was asked for is done.
        StudyError: nothing could be trained, or the folder holds another kind of thing.
        EvaluationError: the study's tasks have no items where it says.
        NothingFits: nothing fits the budget; the plan with the nearest shape is in the folder.
        Stopped: a signal asked to end; what there is, is kept.
    """
    folder, study = Path(folder), study.settled()
    stages = list_stages(study)
    if until is not None and until not in stages:
        raise StudyError(f"there is no stage {until!r} in this study; its stages are {', '.join(stages)}")
    check_target(study.device, study.workload)
    asks = until is None or stages.index(until) >= stages.index("evaluate")
    if asks and (study.text or study.mixture):
        check_questions(study.evaluate)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder} cannot be made: {error.strerror}; name another folder") from None
    with hold_folder(folder):
        codec.save(study, folder / STUDY, kind="study")
        return _Runner(study, folder, Kept(folder, report=report, until=until), report, live).run()


class NothingFits(BudgetError):
    """Say that no shape of the plan fits the budget; `result` holds what the study found all the same."""

    def __init__(self, message: str, result: StudyResult) -> None:
        super().__init__(message)
        self.result = result


class _Runner:
    """Hold a study that is being carried out."""

    def __init__(self, study: Study, folder: Path, kept: Kept, report: Report, live: bool) -> None:
        self.study, self.folder, self.kept, self.report, self.live = study, folder, kept, report, live
        self.notes: list[str] = []

    def run(self) -> StudyResult:
        """Carry out the stages, one after another."""
        study, folder, kept = self.study, self.folder, self.kept
        dataset = self._make_text()
        entries = list_entries(study, folder, dataset)
        largest = find_largest(entries)
        check_reach(study.plan, largest)  # before the sweep, which is what costs
        table: str | Path = study.law.runs or folder / RUNS / "runs.jsonl"
        if entries:
            asked = [[recipe.id for recipe in entry.recipes] for entry in entries]
            after = ("data",) if study.mixture is None else ("mixture",)
            swept = kept("sweep", lambda: self._sweep(entries, RUNS), asked=asked, after=after)
            self.notes += [f"{name} could not be trained: {error}" for name, error in swept["failures"].items()]
        kept(
            "law", lambda: make_law(study.law, table, folder, seed=study.seed),
            asked=[study.law, study.seed, hash_named(study.law.runs, study.law.file)],
            after=("sweep",) if entries else (),
        )  # fmt: skip
        law = Law.load(folder / LAW)
        self.notes += [*law.warnings, *describe_unseen(law)]
        shapes = [entry.recipe.shape for entry in entries]
        kept(
            "device", lambda: make_device(study.device, study.workload, shapes, folder, self.report),
            asked=[study.device, study.workload, shapes if study.device.here else [], hash_named(study.device.file)],
        )  # fmt: skip
        device = load_device(folder / DEVICE)
        planned = kept(
            "plan", lambda: make_choices(study, law, device, folder, largest_flops=largest),
            asked=[study.plan, study.workload, study.device.engine, study.law.level], after=("law", "device"),
        )  # fmt: skip
        choices = load_plan(folder).choices[: study.plan.top]
        if not choices:
            return self._conclude([], planned["budget_s"], dataset)
        if dataset is None:
            raise Reached("plan")
        chosen = make_recipes(study, [choice.shape for choice in choices], dataset)
        asked = [[recipe.id for recipe in entry.recipes] for entry in chosen]
        trained = kept("train", lambda: self._train(chosen), asked=asked, after=("plan",))
        candidates = self._join(choices, chosen, trained)
        if study.device.here:
            measured = kept(
                "measure", lambda: measure_candidates(study, candidates, folder, self.report),
                asked=[study.device, study.workload, [c.recipe_id for c in candidates]], after=("train",),
            )  # fmt: skip
            candidates = [dataclasses.replace(c, **measured[c.recipe_id]) for c in candidates]
        scores = kept(
            "evaluate", lambda: evaluate_candidates(study, candidates, folder, dataset, self.report),
            asked=[questions_content(study.evaluate), study.seed, [c.recipe_id for c in candidates]], after=("train",),
        )  # fmt: skip
        candidates = [dataclasses.replace(c, **scores[c.recipe_id]) for c in candidates]
        return self._conclude(candidates, planned["budget_s"], dataset)

    def _make_text(self) -> str | None:
        """Make what models train on, if the study names any: a dataset, or a mixture of several."""
        study, folder, text, mixing = self.study, self.folder, self.study.text, self.study.mixture
        if mixing is not None:
            found = self.kept(
                "mixture", lambda: make_mixture(study, mixing, folder, lambda proxies: self._sweep(proxies, PROXIES)),
                asked=[
                    mixing, mixture_content(mixing), proxy_document(study, mixing), study.plan.tokens, study.seed,
                    study.law.level,
                ],
            )  # fmt: skip
            self.notes += describe_mixture(found)
            return str(folder / found["file"])
        if text is not None:
            found = self.kept("data", lambda: make_data(text, folder, self.report), asked=text_content(text))
            return str(folder / found["dataset"])
        return None

    def _sweep(self, entries: Sequence[Entry], name: str) -> Made:
        """Train entries; what failed is tried again when the study is called again."""
        launch = self.study.launch
        found = sweep(
            entries, self.folder / name, launcher=make_launcher(launch.launcher, launch.settings),
            retries=launch.retries, execution=read_execution(launch.execution), report=self.report, live=self.live,
        )  # fmt: skip
        if not found.runs:
            first = found.failures[0]
            raise StudyError(f"no recipe could be trained; {first.name}: {first.error} (its log: {first.log})")
        return Made(
            result={
                "runs": summarise_runs(found.runs),
                "failures": {failure.name: failure.error for failure in found.failures},
            },
            files=(str(found.table.relative_to(self.folder)),),
            flops=sum(entry.flops for entry in entries),
            runs=len(found.runs),
            before_s=found.before_s,
            keep=not found.failures,
        )  # fmt: skip

    def _train(self, entries: Sequence[Entry]) -> Made:
        """Train the chosen shapes; one whose weights were deleted is trained again."""
        places = [Path(CANDIDATES) / entry.recipe.id[:ID_DIGITS] for entry in entries]
        for place in places:
            if not (self.folder / place / WEIGHTS).is_file():
                (self.folder / place / RUN).unlink(missing_ok=True)
        made = self._sweep(entries, CANDIDATES)
        weights = [str(place / WEIGHTS) for place in places if (self.folder / place / WEIGHTS).is_file()]
        return dataclasses.replace(made, files=tuple(weights), shared=made.files)  # scores are added to the table

    def _join(self, choices: Sequence[Choice], entries: Sequence[Entry], trained: Mapping[str, Any]) -> list[Candidate]:
        """Put what the plan predicted beside what training gave."""
        # the loss that the law is of, where it is of the study's own runs
        validation = None if self.study.grid is None else self.study.law.validation
        frame = read_runs(self.folder / CANDIDATES / "runs.jsonl", validation=validation)
        rows = {row["recipe_id"]: row for row in frame.to_dict("records")}
        found = []
        for choice, entry in zip(choices, entries, strict=True):
            recipe_id = entry.recipe.id
            row = rows.get(recipe_id)
            if row is None:
                self.notes.append(f"{choice.name} could not be trained: {trained['failures'].get(entry.name, '')}")
                continue
            found.append(
                Candidate(
                    name=choice.name, rank=choice.rank, recipe_id=recipe_id,
                    folder=f"{CANDIDATES}/{recipe_id[:ID_DIGITS]}", shape=entry.recipe.shape,
                    tokens=entry.recipe.tokens, predicted_loss=choice.loss, loss_low=choice.loss_low or choice.loss,
                    loss_high=choice.loss_high or choice.loss, true_loss=float(row["loss"]),
                    true_loss_se=_read_number(row.get("loss_se")), predicted_s=choice.total_s, measured_s=None,
                    measured_p95_s=None, memory_bytes=choice.memory_bytes,
                    measured_memory_bytes=None, train_seconds=float(row["seconds"]), train_flops=entry.flops,
                )
            )  # fmt: skip
        return found

    def _conclude(self, candidates: Sequence[Candidate], budget_s: float | None, dataset: str | None) -> StudyResult:
        """Choose the candidate of lowest loss that is quick enough, and write down all that was found."""
        study, folder = self.study, self.folder
        candidates = [dataclasses.replace(c, within_budget=is_within(c, budget_s)) for c in candidates]
        chosen, reason = choose(candidates, budget_s)
        exported, sample, prompt = None, "", ""
        if chosen is not None and dataset is not None:
            made = self.kept(
                "export", lambda: write_sample(study, chosen, folder, dataset), after=("train",),
                asked=[study.export, study.prompt, chosen.recipe_id],
            )  # fmt: skip
            exported, sample, prompt = made["exported"], made["sample"], made["prompt"]
        plan = load_plan(folder)
        costs = {name: stage.cost for name, stage in self.kept.done.items()}
        result = StudyResult(
            name=study.name, study=codec.encode(study), key=hash_words(study),
            created=datetime.now(UTC).isoformat(timespec="seconds"), level=study.law.level, budget_s=budget_s,
            candidates=tuple(candidates), chosen=None if chosen is None else chosen.name, reason=reason,
            rivals=find_rivals(study, plan, Law.load(folder / LAW), chosen),
            runs_table=f"{RUNS}/runs.jsonl" if study.grid else str(study.law.runs or ""), law_file=LAW,
            device_file=DEVICE, plan_file=PLAN, measurements_file=MEASUREMENTS if study.device.here else None,
            exported=exported, prompt=prompt, sample=sample, costs=dict(costs),
            versions={"lathe": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            notes=tuple(dict.fromkeys(self.notes)),
            commands=(f"lathe run {folder / STUDY} --out {folder}", f"lathe report {folder}"),
        )  # fmt: skip
        codec.save(result, folder / RESULT, kind="study-result")
        if not plan.choices:
            raise NothingFits(reason_of(plan), result)
        return result


def read_execution(settings: Mapping[str, Any]) -> Execution:
    """Read how each training of a study is run. Raises CodecError, StudyError for what the sweep says itself."""
    if own := sorted({"out", "runs", "name", "branch_at"} & set(settings)):
        raise StudyError(f"[launch] execution gives {own[0]}, which a sweep gives each training itself; leave it out")
    given = fit_value(Execution, {"out": "", "log_every": QUIET, **settings})
    return codec.decode(Execution, given, source="[launch] execution")


def reason_of(plan: Any) -> str:
    """Say why a plan has no choice, and what comes nearest."""
    nearest = plan.nearest
    near = "" if nearest is None else f"; the nearest is {nearest.name}"
    return f"no shape of the plan fits its budget{near}: see {PLAN}, and give more time or other widths and depths"


def _read_number(value: float | None) -> float | None:
    """Take a table's gap for what it is."""
    return None if value is None or math.isnan(value) else float(value)
