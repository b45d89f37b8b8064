"""The command that cleans a corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.terminal import Progress, Words, need, open_console

if TYPE_CHECKING:
    from lathe.data.clean_stages import Compression


Inputs = Annotated[
    Words,
    arg(help="files (.txt, .jsonl, .parquet; .txt and .jsonl also .gz, .zst) or folders of them", metavar="[FILE …]"),
]
SUFFIXES: dict[str, Compression] = {"gz": ".gz", "zst": ".zst", "none": ""}


def clean(
    inputs: Positional[Inputs],
    out: Path,
    recipe: Path | None = None,
    executor: Literal["local", "slurm", "ray"] = "local",
    tasks: int = 2,
    text_key: str = "text",
    on_bad_line: Literal["fail", "skip"] = "fail",
    compression: Literal["gz", "zst", "none"] = "gz",
) -> None:
    """Filter a corpus and remove its duplicates, through datatrove. What was interrupted goes on when run again.

    Example: lathe data clean texts/ --out cleaned

    Args:
        out: a new folder: documents/ for `lathe data build`, removed/ by step, report.json.
        recipe: a TOML file of [[steps]]; if not given, Gopher's filters, then exact and near duplicates.
        executor: local, or the cluster that the recipe describes; slurm submits, and the same command reports later.
        tasks: processes that share the files; a file is never split.
        text_key: key or column of the text, in .jsonl and .parquet files; it is `text` in what is written.
        on_bad_line: what to do at a line that holds no document.
        compression: of what is written.
    """
    from lathe.data.clean import clean_corpus
    from lathe.data.clean_recipe import CleanRecipe, load_recipe
    from lathe.report.clean_table import clean_table

    need(inputs, "INPUTS", "files or folders of text")
    steps = CleanRecipe() if recipe is None else load_recipe(recipe)
    with Progress("Cleaning") as tick:
        found = clean_corpus(
            steps, inputs=inputs, out=out, executor=executor, tasks=tasks, text_key=text_key, on_bad_line=on_bad_line,
            compression=SUFFIXES[compression], progress=tick,
        )  # fmt: skip
    console = open_console()
    if found is None:
        console.print(f"submitted; run the same command when the jobs are done. Logs: {out / 'logs'}")
        return
    console.print(clean_table(found))
    if not found.kept:
        print(f"note: no document is left; {out / 'removed'} has what each step removed", file=sys.stderr)
    console.print(f"documents: {out / 'documents'}")
    console.print(f"report: {out / 'report.json'}")
