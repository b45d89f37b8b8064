"""The command that carries out a study, and the one that lays its report out again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.terminal import open_console

if TYPE_CHECKING:
    from lathe.studies import StudyResult
    from lathe.sweep.study import Study

Stage = Literal["data", "mixture", "sweep", "law", "device", "plan", "train", "measure", "evaluate", "export"]


def run(
    study: Annotated[Positional[Path], arg(help="a study's TOML file, or quickstart")],
    out: Path | None = None,
    until: Stage | None = None,
    dry_run: bool = False,
    seed: int | None = None,
    open: bool = False,
) -> None:
    """Carry out a study: data, small runs, law, device, plan, training, measuring, evaluation, choice, report.

    Example: lathe run quickstart

    What is done is kept in the study's folder: the same command goes on where it was stopped, and makes again only what
    hangs on something that has changed. Ends with exit code 2 where nothing fits the budget, and the report says what
    comes nearest; with 75 where a signal asked to stop.

    Args:
        out: the study's folder; studies/ and its name if not given.
        until: stop after this stage.
        dry_run: say what would be done, what is there already or missing, and what it would take; do nothing. Ends with
            exit code 2 where a file, dataset, device or launcher that the study names is not there.
        seed: of first weights, of the data's order and of draws, in place of the study's.
        open: show the report in the browser.
    """
    from lathe.sweep.study import load_study

    found = load_study(study)
    if seed is not None:
        found = found.with_seed(seed)
    folder = out or Path("studies") / found.name
    if dry_run:
        from lathe.sweep.dry import describe_study

        outline = describe_study(found, folder)
        print("\n".join(outline.lines))
        for one in outline.missing:
            print(f"lathe: missing: {one}", file=sys.stderr)
        if outline.missing:
            sys.exit(2)
        return
    page = carry_out(found, folder, until=until)
    if open and page is not None:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def carry_out(study: Study, folder: Path, *, until: str | None = None) -> Path | None:
    """Carry a study out, show what it found, and give its page; None where it was to stop earlier.

    Where nothing fits the budget there is a page too. Raises NothingFits then; exits where a signal asked to stop.
    """
    from lathe.errors import Stopped
    from lathe.report.study_summary import study_summary
    from lathe.sweep.kept import Reached
    from lathe.sweep.run import NothingFits, run_study
    from lathe.train.launch import STOPPED

    console, page = open_console(), folder / "report.html"
    try:
        result = run_study(study, folder, until=until, report=console.print)
    except Reached as reached:
        console.print(f"{reached}; what there is, is in {folder}")
        return None
    except NothingFits as unmet:
        console.print(f"report: {_write_page(unmet.result, folder, page)}")
        raise
    except Stopped as stopped:
        print(f"lathe: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    _write_page(result, folder, page)
    console.print(study_summary(result))
    console.print(f"report: {page}")
    return page


def report(
    folder: Annotated[Positional[Path], arg(help="a study's folder")],
    format: Literal["html", "md"] = "html",
    out: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Lay out the report of a study that was carried out: a page, Markdown, or figures.

    Example: lathe report studies/quickstart --format md --out report.md

    Args:
        format: html is one interactive file that needs no network; md is for repositories and pull requests.
        out: where to write it; report.html or report.md in the study's folder if not given.
        figures: also write the charts to this folder, as SVG, PNG and PDF.
    """
    from lathe import codec
    from lathe.documents import check_path, write_atomic
    from lathe.errors import StudyError
    from lathe.studies import StudyResult

    if not (folder / "result.json").is_file():
        raise StudyError(f"{folder} holds no result.json: carry out a study there first, such as lathe run quickstart")
    result = codec.load(StudyResult, folder / "result.json", kind="study-result")
    path = out or folder / f"report.{format}"
    check_path(path, f".{format}")
    if figures is not None:
        from lathe.report.study_figures import save_figures

        save_figures(result, folder, figures, formats=("svg", "png", "pdf"))
        print(f"figures: {figures}")
    if format == "html":
        _write_page(result, folder, path)
    else:
        from lathe.report.study_markdown import study_markdown

        linked = None if figures is None else os.path.relpath(figures, path.parent)
        write_atomic(path, study_markdown(result, folder, figures=linked))
    print(f"report: {path}")


def _write_page(result: StudyResult, folder: Path, path: Path) -> Path:
    from lathe.report.charts import save_chart
    from lathe.report.study_page import study_page

    save_chart(study_page(result, folder), path)
    return path
