"""Kill a training again and again, and compare what comes of it with one never killed, bit by bit.

Run it as `python benchmarks/resume.py [--save] [--kills 40]`. A run of 60 steps saves after every second one. It is
ended by SIGKILL and SIGTERM in turn, after a random number of further steps and a random part of a step more, so during
saves as well; when it has finished, another one begins. Compared are the weights, the whole trainer state, the loss
curve and the result.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import publish, row

# isort: split
import torch
from safetensors.torch import load_file

from lathe.data.build import build_dataset
from lathe.data.builtin import builtin_input
from lathe.data.tokenizer import train_tokenizer
from lathe.recipe import Data, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import Trainer, train
from lathe.train.meter import DETERMINISTIC, read_metrics
from lathe.train.shards import find_tensors, read_tensors
from lathe.train.snapshots import list_steps, step_folder

STEPS, SEQ_LEN, SEQUENCES = 60, 64, 4
SAVED = 75
"""A process's exit code when it has saved on SIGTERM."""


def train_once(folder: Path, out: Path) -> None:
    """Train, and print every step."""
    from lathe.errors import Stopped

    shape = Shape.of(d_model=64, n_layers=3, n_heads=4, vocab_size=1024, max_seq_len=SEQ_LEN)
    recipe = Recipe(
        shape=shape, tokens=STEPS * SEQUENCES * SEQ_LEN, seq_len=SEQ_LEN, batch_tokens=SEQUENCES * SEQ_LEN, lr=4e-3,
        data=Data(train=str(folder / "data")), optimiser=Optimiser(embedding_lr=2e-2), ema=0.95,
        schedule=Schedule(name="wsd", warmup_steps=5, decay=0.2),
    )  # fmt: skip
    update = Trainer._update

    def updated(trainer: Trainer, step: int) -> None:
        update(trainer, step)
        print(step + 1, flush=True)

    Trainer._update = updated
    try:
        train(recipe, Execution(out=str(out), save_every=2, threads=1, log_every=1000), report=lambda _: None)
    except Stopped:
        sys.exit(SAVED)


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    """Train in another process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, out: Path) -> None:
    """Train to the end."""
    process = start(folder, out)
    _, said = process.communicate()
    assert process.returncode == 0, said


def read_out(out: Path) -> dict[str, object]:
    """Read all that must be the same."""
    place = step_folder(out, list_steps(out)[-1])
    state = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in find_tensors(place, "").items()}
    read_tensors(place, state)
    result = json.loads((out / "run.json").read_text())
    rows = [{name: one[name] for name in DETERMINISTIC} for one in read_metrics(out / "metrics.jsonl")]
    numbers = {name: result[name] for name in ("losses", "loss_ses", "train_loss", "tokens")}
    return {"weights": load_file(out / "model.safetensors"), "state": state, "curve": rows, "result": numbers}


def same(found: dict[str, object], wanted: dict[str, object]) -> bool:
    """Say whether two runs gave the same to the bit."""
    for name in ("weights", "state"):
        ours, theirs = found[name], wanted[name]
        assert isinstance(ours, dict)
        assert isinstance(theirs, dict)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return found["curve"] == wanted["curve"] and found["result"] == wanted["result"]


def measure(kills: int, folder: Path) -> tuple[int, int, int]:
    """Kill so often; gives how many runs were finished, how many of them were the same, and exits that had saved."""
    rng, text = random.Random(0), builtin_input(limit_bytes=10**6)
    train_tokenizer([text], vocab_size=1024, out=folder / "tokenizer.json")
    build_dataset([text], tokenizer=folder / "tokenizer.json", out=folder / "data", held_out=0.05)
    finish(folder, folder / "whole")
    wanted = read_out(folder / "whole")
    finished = equal = saved = done = 0
    while done < kills:
        out = folder / f"killed-{finished}"
        while done < kills and not (out / "run.json").exists():
            process = start(folder, out)
            assert process.stdout is not None
            left = rng.randint(1, 12)
            while left and process.stdout.readline():
                left -= 1
            time.sleep(rng.uniform(0, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if done % 2 else signal.SIGKILL)
                done += 1
            process.communicate()
            saved += process.returncode == SAVED
        finish(folder, out)
        finished, equal = finished + 1, equal + same(read_out(out), wanted)
        print(f"{done} kills, {equal} of {finished} runs the same", file=sys.stderr, flush=True)
    return finished, equal, saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--kills", type=int, default=40, help="how many")
    parser.add_argument("--folder", type=Path, help="train there once")
    parser.add_argument("--out", type=Path, help="with --folder: the run's folder")
    given = parser.parse_args()
    if given.folder is not None:
        train_once(given.folder, given.out)
        return
    with tempfile.TemporaryDirectory() as name:
        finished, equal, saved = measure(given.kills, Path(name))
    rows = [
        row(f"runs that were the same to the bit after {given.kills} kills", equal, "", peer="of", peer_value=finished),
        row("of the kills, SIGTERMs that had saved at their exit", saved, ""),
    ]
    publish("resume", rows, save=given.save)


if __name__ == "__main__":
    main()
