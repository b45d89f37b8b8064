"""Compare ways to start a small model: train every arm alike, and set what it came to beside what it cost.

    study.json  result.json         what was asked, and what was found
    starts/  runs/  runs.jsonl      first weights, trainings, and the table of them
    losses/                         held-out losses by sequence, of every set of weights
    analysis.json  device.json      the reference's layers; this machine, if the models are to serve here

All of these are kept: a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lathe import codec
from lathe.data.mixture import open_sources
from lathe.device import Device
from lathe.errors import StudyError
from lathe.evals.analyse import SEQ_LEN, analyse, draw_sequences
from lathe.evals.analysis import Analysis
from lathe.evals.paired import SequenceLosses, paired_difference
from lathe.inherit.arms import ARMS, Source
from lathe.inherit.layers import choose_layers
from lathe.inherit.ledger import Charge, Ledger, charge_evaluation, charge_reference
from lathe.inherit.lines import Costs, Line, list_lines
from lathe.inherit.results import InheritResult, ReferenceRow, Row, Serving
from lathe.inherit.serving import find_device, predict, serve
from lathe.inherit.start import Inheritance, name_layers
from lathe.inherit.study import InheritStudy, read_execution
from lathe.inherit.trials import Trials, Tried, average, standard_error
from lathe.model.checkpoint import WEIGHTS, build_model, load_shape_of, read_tensors
from lathe.recipe import Distil, Recipe
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.conditions import record
from lathe.train.content import hash_weights
from lathe.train.execution import Execution
from lathe.train.folder import hold_folder
from lathe.train.loop import train
from lathe.train.request import check_request, read_tables
from lathe.train.text import open_mixture, open_text
from lathe.train.tokens import check_same_tokenizer, check_same_tokens

STUDY, RESULT, ANALYSIS = "study.json", "result.json", "analysis.json"
RESULT_KIND = "inherit-result"
Report = Callable[[str], None]
Train = Callable[[Recipe, Execution], Run]


def compare_starts(
    study: InheritStudy, folder: str | Path, *, train_with: Train | None = None, report: Report = print
) -> InheritResult:
    """Carry a comparison out in a folder, or what of it is not there yet.

    `train_with` trains a recipe, quietly and here if not given. Raises:
        StudyError: arms that cannot be made, latencies that cannot be matched.
        ShapeError: layers that the reference does not have, or a width that its heads do not allow.
        RecipeError, DataError: a recipe that cannot be trained, data of other tokens than the reference's.
        Stopped: a signal asked to end; what there is, is kept.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder} cannot be made: {error.strerror}; name another folder") from None
    with hold_folder(folder):
        codec.save(study, folder / STUDY, kind="inherit-study")
        return _Comparison(study, folder, train_with or _train_quietly, report).run()


def _train_quietly(recipe: Recipe, execution: Execution) -> Run:
    return train(recipe, execution, report=lambda line: None)


class _Comparison:
    """Hold a comparison that is being carried out."""

    def __init__(self, study: InheritStudy, folder: Path, train_with: Train, report: Report) -> None:
        self.study, self.folder, self.report = study, folder, report
        self.reference = Path(study.reference)
        self.shape = load_shape_of(self.reference)
        self.weights = read_tensors(self.reference / WEIGHTS)
        self.train_with = train_with
        recipe = self._read_recipe(self.shape, lambda line: None)
        check_same_tokens(self.reference, recipe, who="the reference")
        doubt = check_same_tokenizer(self.reference, recipe, who="the reference")
        self.notes = [] if doubt is None else [doubt]
        if doubt is not None:
            report(f"warning: {doubt}")
        assert recipe.data is not None
        self.data, self.seq_len, self.scheme = recipe.data, recipe.seq_len, recipe.init.scheme

    def _read_recipe(self, shape: Shape, report: Report) -> Recipe:
        """Read the study's recipe for a shape."""
        settings = {f"shape.{name}": value for name, value in codec.encode(shape).items()}
        source = f"{self.study.name}: [recipe]"
        return read_tables(self.study.recipe, settings, folder=".", source=source, report=report)[0]

    def run(self) -> InheritResult:
        """Analyse, plan, train from every seed, measure, and set it all side by side."""
        study = self.study
        analysis = self._analyse()
        source = self._make_source(analysis)
        base = self._read_recipe(source.small, self.report)
        trials = Trials(
            self.folder, self.reference, base, read_execution(study.execution), train_with=self.train_with,
            report=self.report,
        )  # fmt: skip
        shapes = {"reference": self.shape} | {name: ARMS[name].shape(source, None) for name in study.arms}
        device = find_device(study, shapes, self.folder, report=self.report)
        charge = None
        if analysis is not None:
            charge = Charge(what="analysing the reference", kind="analysis", flops=analysis.flops)
        costs = Costs(study=study, base=base, teacher=self.shape, distil=self._distil(), analysis=charge)
        lines = list_lines(costs, source, device)
        for recipe in [one for line in lines for one in (line.first, line.recipe) if one is not None]:
            # what is wrong is said before anything is trained
            open_text(recipe)
            check_request(recipe, trials.execution, world=1)
        tried = {line.name: list[Tried]() for line in lines}
        for seed in study.seeds:
            for line in lines:
                tried[line.name].append(trials.try_line(line, source, costs, seed))
        return self._conclude(lines, tried, source, costs, device, trials)

    def _analyse(self) -> Analysis | None:
        """Analyse the reference on text to train on, if anything hangs on it."""
        study, path = self.study, self.folder / ANALYSIS
        if not study.measures_layers and not any(ARMS[name].analysed for name in study.arms):
            return None
        name = hash_weights(self.reference)
        if path.is_file():
            kept = codec.load(Analysis, path, kind="analysis")
            if (kept.name, kept.sequences) == (name, study.sequences):
                return kept
        self.report("analysing the reference")
        split = next(iter(open_sources(open_mixture(self.data)).values())).split("train")
        seq_len = min(SEQ_LEN, self.seq_len)
        tokens_nt = draw_sequences(split, sequences=self.study.sequences, seq_len=seq_len)
        model = build_model(self.shape, self.weights, dtype="fp32", device="cpu", source=str(self.reference))
        found = analyse(model, tokens_nt, name=name, dataset=str(split.dataset.folder), lens=False)
        codec.save(found, path, kind="analysis")
        return found

    def _make_source(self, analysis: Analysis | None) -> Source:
        study, n_layers = self.study, self.shape.n_layers
        asked = Inheritance(
            layers=study.layers, keep_ratio=study.keep_ratio, by=study.by if study.keep_ratio is not None else None
        )
        layers = name_layers(asked, n_layers, analysis)
        pruned = None
        if any(ARMS[name].analysed for name in study.arms):
            pruned = choose_layers(n_layers, len(layers), by="similarity", analysis=analysis)
        return Source(
            shape=self.shape, weights=self.weights, layers=layers, influential=pruned, width=study.narrowed.d_model,
            width_by=study.narrowed.by, scheme=self.scheme,
        )  # fmt: skip

    def _distil(self) -> Distil:
        asked = self.study.distilled
        return Distil(
            teacher=str(self.reference.absolute()), content=hash_weights(self.reference),
            temperature=asked.temperature, weight=asked.weight,
        )  # fmt: skip

    def _conclude(
        self,
        lines: Sequence[Line],
        tried: dict[str, list[Tried]],
        source: Source,
        costs: Costs,
        device: Device,
        trials: Trials,
    ) -> InheritResult:
        reference = trials.measure(self.reference)
        places = {self.reference: self.shape}
        places |= {self.folder / tried[line.name][0].trial.folder: line.shape for line in lines}
        serving = serve(places, device, self.study, self.folder, report=self.report)
        training = charge_reference(
            self.reference, self.shape, tokens=self.study.reference_tokens, seq_len=costs.base.seq_len
        )
        if training.flops is None:
            self.notes.append("nothing says what the reference was trained on; give reference_tokens to charge it")
        rows = [self._row(line, tried, reference, training, serving[line.shape]) for line in lines]
        result = InheritResult(
            name=self.study.name, study=codec.encode(self.study), layers=source.layers,
            created=datetime.now(UTC).isoformat(timespec="seconds"), dataset=str(trials.split.dataset.folder),
            budget_flops=costs.budget, target_s=predict(source.small, device, self.study), device=device.name,
            workload=self.study.workload,
            reference=ReferenceRow(
                folder=str(self.reference), shape=self.shape, loss=reference.loss, loss_se=standard_error(reference),
                ledger=Ledger(charges=(training,)), serving=serving[self.shape],
            ),
            rows=tuple(rows), notes=tuple(self.notes), versions=record("cpu")["versions"],
        )  # fmt: skip
        codec.save(result, self.folder / RESULT, kind=RESULT_KIND)
        return result

    def _row(
        self, line: Line, tried: dict[str, list[Tried]], reference: SequenceLosses, training: Charge, serving: Serving
    ) -> Row:
        mine = tried[line.name]
        losses = average([one.losses for one in mine])
        each = [one.trial.loss for one in mine]
        random = tried.get("random") if line.key != "random" else None
        evaluated = charge_evaluation("held-out loss", line.shape, tokens=losses.tokens, seq_len=line.recipe.seq_len)
        charges = (*mine[0].charges, evaluated, *((training,) if line.arm.reference else ()))
        return Row(
            name=line.name, arm=line.key, what=line.arm.what, equal=line.equal, shape=line.shape,
            tokens=line.recipe.tokens, start_loss=float(np.mean([one.trial.start_loss for one in mine])),
            loss=losses.loss, loss_se=standard_error(losses),
            loss_sd=float(np.std(each, ddof=1)) if len(each) > 1 else None,
            versus_random=None if random is None else paired_difference(average([r.losses for r in random]), losses),
            versus_reference=paired_difference(reference, losses),
            lower=None if random is None else sum(a < b.trial.loss for a, b in zip(each, random, strict=True)),
            ledger=Ledger(charges=charges), serving=serving, trials=tuple(one.trial for one in mine),
            curve=mine[0].curve,
        )  # fmt: skip
