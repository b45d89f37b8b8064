"""The command that evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.plans import Dtype
from lathe.cli.terminal import Progress, Words, need, open_console

if TYPE_CHECKING:
    from lathe.evals.answers import Answers
    from lathe.evals.evaluate import TaskPlan
    from lathe.evals.overlap import OverlapReport
    from lathe.evals.results import LossResult

Texts = Annotated[Words, arg(help="datasets' folders, mixtures' files, or files of text", metavar="DATASET…")]
Tasks = Annotated[Words, arg(help="tasks and suites of the catalogue", metavar="TASK…")]
Files = Annotated[Words, arg(help="other files of items, such as hellaswag=my_items.jsonl", metavar="TASK=PATH…")]
Both = Annotated[
    tuple[Path, Path] | None, arg(help="two files that --items wrote: paired tests of the second's lead", metavar="A B")
]


def evaluate(
    checkpoint: Positional[Path | None] = None,
    loss: Texts = (),
    way: Literal["windows", "strided", "documents"] = "windows",
    seq_len: int | None = None,
    stride: int | None = None,
    most_tokens: int | None = None,
    split: Literal["held-out", "train"] = "held-out",
    text_key: str = "text",
    tasks: Tasks = (),
    data: Path = Path("."),
    file: Files = (),
    catalogue: Path | None = None,
    shots: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    harness: Annotated[Words, arg(help="tasks of lm-evaluation-harness", metavar="TASK…")] = (),
    include_path: Path | None = None,
    overlap: Annotated[Words, arg(help="training data to look for the items in", metavar="DATASET…")] = (),
    compare: Both = None,
    items: Path | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    categories: bool = False,
    record: bool = True,
    batch_tokens: int | None = None,
    dtype: Dtype = "fp32",
    device: str = "cpu",
    backend: Literal["auto", "lathe", "transformers"] = "auto",
    tokenizer: Path | None = None,
    max_tokens: int | None = None,
    json: bool = False,
) -> None:
    """Measure a checkpoint's loss on held-out text and its accuracy on tasks, with standard errors.

    Example: lathe eval runs/tiny --loss data/wiki --tasks arc_easy hellaswag --data items

    The scores of a trained checkpoint join its run and the table of runs beside it, for laws of accuracy. Without a
    checkpoint, --compare sets two evaluations side by side, and --overlap looks for --tasks' items in training data.

    Args:
        checkpoint: a Lathe checkpoint's or Hugging Face model's folder, or an OpenLM, llama2.c or GGUF file.
        way: how text is read: windows side by side, overlapping ones (strided), or each document by itself.
        seq_len: tokens read at once for the loss; what the model was made for if not given.
        stride: tokens that strided windows move on; half of seq_len if not given.
        most_tokens: measure the loss on a fixed part of the text.
        split: of datasets.
        text_key: of text in JSON lines and parquet files.
        data: the folder with the tasks' files of items (a missing one is named with where it is published).
        catalogue: a TOML file with tasks and suites of your own.
        shots: examples before each question; each task's own number if not given.
        seed: draws the examples.
        limit: items of each task, at even distances; all if not given.
        include_path: a folder with more of the harness's tasks.
        items: write every item's result here (.jsonl).
        out: write the evaluation here (.json); with --overlap, the overlapping items (.jsonl).
        plot: write a page with charts here (.html); of an evaluation, or of the two that --compare sets side by side.
        categories: also show accuracy per category.
        record: add the scores of a trained checkpoint to its run, unless they are of a part (limit, most_tokens).
        batch_tokens: tokens computed at once; no score depends on it.
        dtype: of the weights.
        device: cpu, cuda, cuda:1, …
        backend: transformers reads a Hugging Face folder as it is; auto only where Lathe's decoder cannot hold it.
        tokenizer: a tokenizer.json, for models that bring none.
        max_tokens: the most the model reads at once, if not what it was made for.
        json: print the evaluation as JSON instead of tables.
    """
    from lathe.documents import check_path
    from lathe.evals.evaluate import TaskPlan

    for path, suffix in ((items, ".jsonl"), (out, ".jsonl" if overlap else ".json"), (plot, ".html")):
        if path is not None:
            check_path(path, suffix)
    measures = bool(loss) or (bool(tasks) and not overlap)
    unheard = {"--items": items, "--plot": plot, "--tokenizer": tokenizer, "--max-tokens": max_tokens}
    _check_flags(
        compare=compare, overlap=overlap, harness=harness, tasks=tasks, measures=measures, out=out,
        unheard={} if measures else unheard,
    )  # fmt: skip
    plan = TaskPlan(
        names=tasks, folder=data, catalogue=catalogue, files=read_files(file), shots=shots, seed=seed, limit=limit
    )
    if compare is not None:
        _print_comparison(*compare, plot=plot, json=json)
    if overlap:
        _print_overlap(plan, overlap, out, json=json)
    if harness:
        _print_harness(checkpoint, harness, include_path, shots, limit, batch_tokens, dtype, device, out, json)
    if measures or not (compare or overlap or harness):
        from lathe.evals.evaluate import TextPlan
        from lathe.evals.evaluate import evaluate as run

        text = TextPlan(
            sources=loss,
            way=way,
            seq_len=seq_len,
            stride=stride,
            most_tokens=most_tokens,
            split=split,
            text_key=text_key,
        )
        with Progress("evaluating") as tell:
            answers = run(
                _need_checkpoint(checkpoint), text=text, tasks=plan, batch_tokens=batch_tokens, dtype=dtype,
                device=device, backend=backend, tokenizer=tokenizer, max_tokens=max_tokens, report=tell,
            )  # fmt: skip
        whole = limit is None and most_tokens is None  # a part's scores would take the place of the whole's
        _keep(answers, items=items, out=out, plot=plot, record=record and whole)
        _print_answers(answers, plan, categories=categories, json=json)


def _check_flags(
    *, compare: Both, overlap: Sequence[str], harness: Sequence[str], tasks: Sequence[str], measures: bool,
    out: Path | None, unheard: Mapping[str, object],
) -> None:  # fmt: skip
    """Refuse flags that do not go together, before anything is measured. Raises EvaluationError."""
    from lathe.errors import EvaluationError

    if overlap:
        need(tasks, "--tasks", "tasks whose items to look for")
    if harness and (wrong := [flag for flag, given in unheard.items() if given]):
        raise EvaluationError(f"--harness has no use for {wrong[0]}; leave it out, or ask for --tasks or --loss apart")
    if out is not None and compare is not None:
        raise EvaluationError("--compare writes no --out; take --json for the comparison, or --plot for a page")
    if out is not None and bool(overlap) + bool(harness) + measures > 1:
        raise EvaluationError(f"{out} has room for one result, and several are asked for; ask for them one by one")


def _need_checkpoint(checkpoint: Path | None) -> Path:
    from lathe.errors import EvaluationError

    if checkpoint is None:
        raise EvaluationError("no checkpoint was given; name its folder first: lathe eval runs/tiny --tasks arc_easy")
    return checkpoint


def read_files(files: Sequence[str]) -> Mapping[str, str]:
    """Read TASK=PATH words. Raises EvaluationError."""
    from lathe.errors import EvaluationError

    if broken := [word for word in files if not all(word.partition("=")[::2])]:
        raise EvaluationError(f"--file {broken[0]!r} is no TASK=PATH, such as hellaswag=items/hellaswag_sample.jsonl")
    return dict(word.split("=", 1) for word in files)


def _keep(answers: Answers, *, items: Path | None, out: Path | None, plot: Path | None, record: bool) -> None:
    """Write what was asked for, and add the scores to a training's run."""
    from lathe import codec
    from lathe.evals.answers import save_answers

    evaluation = answers.evaluation
    if items is not None:
        save_answers(answers, items)
    if out is not None:
        codec.save(evaluation, out, kind="evaluation")
    if plot is not None:
        from lathe.report.charts import save_chart
        from lathe.report.eval_page import evaluation_page

        save_chart(evaluation_page([evaluation]), plot)
    if record:
        from lathe.train.folder import RUN

        if (Path(evaluation.checkpoint) / RUN).is_file():
            from lathe.train.record import add_scores

            add_scores(evaluation.checkpoint, accuracies=evaluation.accuracies, losses=_name_losses(evaluation.losses))


def _name_losses(losses: Sequence[LossResult]) -> dict[str, tuple[float, float | None]]:
    """Name losses as a run's columns: after the source, folder or file; by all of its path where two are alike."""
    found: dict[str, tuple[float, float | None]] = {}
    short = [_name_loss(one) for one in losses]
    for one, name in zip(losses, short, strict=True):
        whole = f"{one.dataset}:{one.source}" if one.source else one.dataset
        found[name if short.count(name) == 1 else whole] = (one.loss, one.se)
    return found


def _name_loss(loss: LossResult) -> str:
    path = Path(loss.dataset).resolve()
    name = loss.source or (path.name if path.is_dir() else path.stem)
    return f"{name}-train" if loss.split == "train" else name


def _print_answers(answers: Answers, plan: TaskPlan, *, categories: bool, json: bool) -> None:
    import json as encoder

    from lathe import codec
    from lathe.evals.evaluate import list_missing
    from lathe.evals.tasks import load_catalogue
    from lathe.report.eval_tables import evaluation_table

    evaluation = answers.evaluation
    if json:
        print(encoder.dumps(codec.encode(evaluation), indent=2))
        return
    console = open_console()
    console.print(evaluation_table(evaluation, categories=categories))
    for line in list_missing(evaluation.aggregates, load_catalogue(plan.catalogue)):
        console.print(f"! {line}")


def _print_comparison(first: Path, second: Path, *, plot: Path | None, json: bool) -> None:
    import json as encoder

    from lathe import codec
    from lathe.evals.answers import load_answers
    from lathe.evals.compare import compare
    from lathe.report.eval_tables import comparison_table

    answers = load_answers(first), load_answers(second)
    found = compare(*answers)
    if plot is not None:
        from lathe.report.charts import save_chart
        from lathe.report.eval_page import evaluation_page

        save_chart(evaluation_page([one.evaluation for one in answers], comparison=found), plot)
    if json:
        print(encoder.dumps(codec.encode(found), indent=2))
    else:
        open_console().print(comparison_table(found))


def _print_overlap(plan: TaskPlan, sources: Sequence[str], out: Path | None, *, json: bool) -> None:
    import dataclasses
    import json as encoder

    from lathe import codec
    from lathe.evals.evaluate import read_tasks
    from lathe.evals.overlap import measure_overlap, write_dirty
    from lathe.evals.tasks import load_catalogue
    from lathe.report.overlap_table import overlap_table

    asked = read_tasks(dataclasses.replace(plan, shots=0), load_catalogue(plan.catalogue))
    questions = {one.task.name: one.questions for one in asked}
    reports: list[OverlapReport] = []
    for source in sources:
        with Progress(f"reading {source}") as tell:
            reports.append(measure_overlap(questions, source, progress=tell))
    if out is not None:
        every = tuple(task for report in reports for task in report.tasks)  # each place names its data
        write_dirty(dataclasses.replace(reports[0], tasks=every), out)
    if json:
        print(encoder.dumps([codec.encode(report) for report in reports], indent=2))
        return
    for report in reports:
        open_console().print(overlap_table(report))


def _print_harness(
    checkpoint: Path | None, tasks: Sequence[str], include_path: Path | None, shots: int | None, limit: int | None,
    batch_tokens: int | None, dtype: str, device: str, out: Path | None, json: bool,
) -> None:  # fmt: skip
    import json as encoder

    from lathe.documents import write_atomic
    from lathe.evals.harness import run_harness

    found = run_harness(
        _need_checkpoint(checkpoint), tasks, include_path=include_path, shots=shots, limit=limit,
        batch_tokens=batch_tokens, dtype=dtype, device=device,
    )  # fmt: skip
    if out is not None:
        write_atomic(out, encoder.dumps(found, indent=2) + "\n")
    if json:
        print(encoder.dumps(found, indent=2))
        return
    from lm_eval.utils import make_table

    print(make_table(found))
