"""What `lathe inherit --study` does: carry a comparison of ways to start out, and show what it found."""

from __future__ import annotations

import sys
from pathlib import Path

from lathe.cli.terminal import open_console


def inherit_study(path: Path, out: Path | None) -> None:
    """Carry a study out in a folder (runs/ and its name if not given); exits as `lathe train` does where stopped."""
    from lathe.errors import Stopped
    from lathe.inherit.compare import compare_starts
    from lathe.inherit.study import load_inherit_study
    from lathe.report.charts import save_chart
    from lathe.report.inherit_page import inherit_page
    from lathe.report.inherit_tables import inherit_table
    from lathe.train.launch import STOPPED

    study = load_inherit_study(path)
    folder, console = out or Path("runs") / study.name, open_console()
    try:
        result = compare_starts(study, folder, report=console.print)
    except Stopped as stopped:
        print(f"lathe: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    console.print(inherit_table(result))
    save_chart(inherit_page(result), folder / "report.html")
    console.print(f"report: {folder / 'report.html'}")
