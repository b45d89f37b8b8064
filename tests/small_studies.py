"""A study so small that it is carried out in seconds: seven shapes, a device from a preset, nothing measured."""

from __future__ import annotations

import atexit
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

WORDS = ("the", "shape", "of", "a", "model", "is", "wide", "deep", "and", "quick", "on", "its", "device", "loss", "law")
STUDY = """
name = "small"
prompt = "the shape of"

[text]
inputs = ["text.jsonl"]
vocab_size = 300
held_out = 0.2

[grid]
tokens = [640, 1280, 2560]
branches = true
[grid.base]
seq_len = 16
batch_tokens = 64
lr = "4e-3 * sqrt(16 / d_model)"
schedule.name = "wsd"
schedule.warmup_steps = 2
schedule.decay = 0.5
[grid.shape]
max_seq_len = 16
n_heads = "d_model / 8"
d_ff = "2 * d_model"
[[grid.shapes]]
d_model = [8, 16, 32]
n_layers = [1, 2]
[[grid.shapes]]
d_model = 24
n_layers = 3

[law]
draws = 50
form = "width-depth"

[device]
preset = "a100-40gb"

[workload]
batch = 1
prompt_tokens = 8
new_tokens = 8
dtype = "fp32"

[plan]
tokens = 3840
params = 60e3
total_s = "median"
d_model = {start = 16, stop = 40, step = 8}
n_layers = {start = 1, stop = 4}
d_heads = [8]
ff_multiple = 8
top = 2

[evaluate]
continuations = 6

[launch]
settings = {slots = 2, threads = 1}
execution = {spike = 1e6}
"""

VOLATILE = {"created", "costs", "versions", "train_seconds", "commands", "study", "key"}
"""Keys of a result that differ when it is made again."""
VOLATILE_COLUMNS = ("seconds", "created", "device", "energy_j", "git")


def write_study(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the study and its text; each change takes the place of a part of the study's file."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(draw.choices(WORDS, k=120)) for _ in range(60)]
    if not (folder / "text.jsonl").exists():  # a file that is written again counts as changed
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    document = STUDY
    for old, new in changes:
        assert old in document
        document = document.replace(old, new)
    (folder / "study.toml").write_text(document)
    return folder / "study.toml"


@functools.cache
def finished_study() -> Path:
    """Carry the study out, once for all tests: gives the folder of study.toml and of out/. Copy it to change it."""
    from lathe.sweep.run import run_study
    from lathe.sweep.study import load_study

    home = Path(tempfile.mkdtemp(prefix="lathe-study-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    run_study(load_study(write_study(home)), home / "out", report=lambda line: None, live=False)
    return home


def steady(folder: Path) -> dict[str, Any]:
    """Give what a study found, but for seconds, dates, hosts, and where it lies."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in VOLATILE}
        return [strip(v) for v in value] if isinstance(value, list) else value

    rows = [json.loads(line) for line in (folder / "runs/runs.jsonl").read_text().splitlines()]
    for row in rows:
        for name in VOLATILE_COLUMNS:
            row.pop(name, None)
    found = strip(json.loads((folder / "result.json").read_text()))
    return {"result": found, "rows": rows, "law": json.loads((folder / "law.json").read_text())}
