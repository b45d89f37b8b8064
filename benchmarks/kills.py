"""Kill `lathe run` by SIGKILL at random moments, call it again, and compare with a study that was never killed.

Run it as `python benchmarks/kills.py [--save] [--kills 20] [--studies 5]`, some ten minutes on two cores. The study is
the small one of tests/, seven shapes and two candidates. One is carried out undisturbed, and when each of its stages
begins is noted. Of the others each is killed several times, at moments drawn one from each of as many equal parts of
the undisturbed study's time as there are kills, and then called until it ends. In turn, a kill takes the command's
process group alone, whose trainers then find themselves without a parent, and every process of its session.

Compared are the choice, the law, the whole result and the table of runs, but for seconds, dates, hosts and places.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _report import publish, row

# isort: split
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from small_studies import steady, write_study

START, REPORT, LAST = "start", "report", "export"
"""What goes before the first stage, what comes after the last, and that one's name."""
ENDS_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Hold when to kill: so long after a stage begins, or is found to be kept."""

    stage: str
    seconds: float


@dataclass(slots=True)
class Call:
    """Hold a running command, and when each stage began that it has told of; the first is its start."""

    process: subprocess.Popen[str]
    began: dict[str, float] = field(default_factory=dict)

    def follow(self) -> None:
        """Note when each stage begins, until the command ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name = line.split(" …")[0].split(": kept")[0].strip()
            if name.isalpha() and line.strip() != name:
                self.began.setdefault(name, time.monotonic())


def start(study: Path, out: Path) -> Call:
    """Call the command as the leader of a session and a group."""
    command = [sys.executable, "-m", "lathe", "run", str(study), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    call = Call(process, {START: time.monotonic()})
    threading.Thread(target=call.follow, daemon=True).start()
    return call


def finish(study: Path, out: Path) -> Call:
    """Call the command to its end."""
    call = start(study, out)
    if call.process.wait(ENDS_S) != 0:
        sys.exit(f"lathe run {study} ended with {call.process.returncode}")
    return call


def draw_moments(call: Call, ended: float, *, kills: int) -> list[Moment]:
    """Draw a moment from each of so many equal parts of an undisturbed study's time."""
    draw, begin = random.Random(0), call.began[START]
    found = []
    for part in range(kills):
        at = begin + (ended - begin) * (part + draw.random()) / kills
        stage = max((name for name, began in call.began.items() if began <= at), key=call.began.__getitem__)
        found.append(Moment(stage=stage, seconds=at - call.began[stage]))
    return found


def kill(study: Path, out: Path, moment: Moment, *, whole: bool) -> str | None:
    """Call the command and kill it at a moment, the `whole` session or the group; gives the stage that this hit.

    None where the command ended before.
    """
    call = start(study, out)
    while call.process.poll() is None:
        began = call.began.get(moment.stage)
        if began is not None and time.monotonic() >= began + moment.seconds:
            break
        time.sleep(0.005)
    hit = max(call.began, key=call.began.__getitem__)
    if hit == LAST and (out / "stages" / f"{LAST}.json").exists():
        hit = REPORT
    alive = call.process.poll() is None
    for process in find_session(call.process.pid) if whole else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(call.process.pid, signal.SIGKILL)
    return hit if call.process.wait() == -signal.SIGKILL and alive else None


def find_session(leader: int) -> list[int]:
    """List the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
    return found


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Name what differs."""
    parts = {"choice": "chosen", "candidates": "candidates"}
    different = [name for name, key in parts.items() if found["result"][key] != wanted["result"][key]]
    different += [name for name in ("law", "rows") if found[name] != wanted[name]]
    return different or (["rest of the result"] if found["result"] != wanted["result"] else [])


def measure(kills: int, studies: int, folder: Path) -> list[dict[str, Any]]:
    """Kill so often, over so many studies, and sum up."""
    call = finish(write_study(folder / "whole"), folder / "whole/out")
    moments, wanted = draw_moments(call, time.monotonic(), kills=kills), steady(folder / "whole/out")
    hits: Counter[str] = Counter()
    different: Counter[str] = Counter()
    for number in range(studies):
        home = folder / f"killed-{number}"
        study = write_study(home)
        for i, moment in enumerate(moments[number::studies]):
            while (hit := kill(study, home / "out", moment, whole=bool((number + i) % 2))) is None:
                moment = replace(moment, seconds=moment.seconds / 2)  # it ended before
            hits[hit] += 1
            _say(f"study {number}: killed in {hit}, meant for {moment.seconds:.2f} s of {moment.stage}")
        finish(study, home / "out")
        found = compare(steady(home / "out"), wanted)
        different.update(found)
        _say(f"study {number}: {', '.join(found) or 'the same'}")
    rows = [row("kills", hits.total(), ""), row("studies killed and carried out to their end", studies, "")]
    rows += [row(f"kills during {name}", count, "") for name, count in hits.items()]
    names = ("choice", "law", "rows", "candidates", "rest of the result")
    return rows + [
        row(f"studies that differ from the one never killed in {name}", different[name], "") for name in names
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--studies", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        publish("kills", measure(given.kills, given.studies, Path(name)), save=given.save)


if __name__ == "__main__":
    main()
