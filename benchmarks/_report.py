"""What every benchmark shares: its threads, medians, the machine's name, and one line of JSON at the end.

Import this before numpy: importing it holds the maths libraries to one thread, or to as many as the environment's
BENCH_THREADS says; a benchmark that needs more sets that first.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
RESULTS = Path(__file__).parent / "results"

os.environ.update(dict.fromkeys(THREADS, os.environ.get("BENCH_THREADS", "1")))
if "numpy" in sys.modules:
    raise ImportError("numpy was imported before benchmarks/_report.py, so its threads can no longer be held")

T = TypeVar("T")


def clock(call: Callable[[], T], *, repeats: int) -> tuple[float, T]:
    """Call it once to warm up, then `repeats` times: returns the median seconds and the last answer."""
    seconds, answer = [], call()
    for _ in range(repeats):
        start = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), answer


def row(
    what: str, value: float, unit: str, *, peer: str | None = None, peer_value: float | None = None
) -> dict[str, Any]:
    """Make one row, and say it on stderr. The ratio is peer_value / value: over one, Lathe is the lower."""
    ratio = None if peer_value is None else peer_value / value
    against = "" if peer_value is None else f"   {peer}: {peer_value:.9g} {unit}   ratio {ratio:.6g}"
    print(f"{what}: {value:.9g} {unit}{against}", file=sys.stderr, flush=True)
    return {"what": what, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def describe_machine() -> str:
    """Name the processor and count its logical cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = found.group(1).strip() if found else name
    return f"{name}, {os.cpu_count()} logical cores, {platform.system()}, Python {platform.python_version()}"


def publish(name: str, rows: list[dict[str, Any]], *, save: bool) -> None:
    """Print the benchmark as one line of JSON, and write it under results/ if asked."""
    machine = describe_machine()
    date = datetime.now(UTC).date().isoformat()
    document = {"name": name, "machine": machine, "date": date, "rows": rows}
    if save:
        slug = re.sub(r"[^a-z0-9]+", "-", machine.split(", Python")[0].lower()).strip("-")
        path = RESULTS / f"{name}-{slug}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"saved {path}", file=sys.stderr)
    print(json.dumps(document, ensure_ascii=False))
