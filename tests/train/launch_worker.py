"""A process that `test_launch` starts: does what it is told, by rank."""

import os
import signal
import sys
import time
from pathlib import Path

TELLS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
rank, folder = int(os.environ["RANK"]), Path(sys.argv[2])


def tell() -> None:
    (folder / f"{rank}.txt").write_text(" ".join(os.environ[name] for name in TELLS))


def sleep() -> None:
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    time.sleep(60)


def fail_alone() -> None:
    if rank == 0:
        sleep()
    raise ValueError("rank one is ill")


def fail_alike() -> None:
    print("lathe: the recipe is wrong", file=sys.stderr)
    sys.exit(2)


def fail_apart() -> None:
    """Rank 1 knows why; rank 0 only notices that rank 1 is gone."""
    if rank == 0:
        time.sleep(0.3)
        sys.exit(1)
    print("lathe: disk full on rank one", file=sys.stderr)
    sys.exit(2)


def stop_when_asked() -> None:
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    while not asked:
        time.sleep(0.02)
    time.sleep(0.2 * rank)  # the ranks do not end at once
    (folder / f"{rank}.asked").write_text(" ".join(map(str, map(int, asked))))
    sys.exit(75)


globals()[sys.argv[1]]()
