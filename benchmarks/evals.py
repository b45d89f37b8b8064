"""Score items with Lathe and with lm-evaluation-harness's Hugging Face model, side by side in one run.

Run it as `python benchmarks/evals.py [--save] [--data DIR] [--limit 400] [--rounds 3]`. The same weights, questions and
tokens: stories260K (trained, 512 tokens of context) and a random decoder of 4.9 M weights, on four kinds of task,
without examples, in fp32 with 2 threads. The time is from texts to picks, encoding included. The peer is timed at each
batch size of 1 (its default), 8, 32 and 64, Lathe at its own; rounds are interleaved, and every figure is a median over
them. The ratio against the best is against the batch size that was fastest for that task and model.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("BENCH_THREADS", "2")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from _report import publish, row

# isort: split
import torch

from lathe.evals.icl import answer_questions
from lathe.evals.items import Question, ask, read_items
from lathe.evals.results import ItemResult
from lathe.evals.scorer import open_scorer
from lathe.evals.tasks import Task, load_catalogue
from lathe.hub.exporting import export_checkpoint
from lathe.hub.importing import import_checkpoint
from lathe.model.checkpoint import save_checkpoint
from lathe.model.init import build
from lathe.shape import Shape

SHARED = Path(__file__).parents[2] / "shared/data"
BATCH_SIZES = (1, 8, 32, 64)
FILES = {
    "arc_easy": "arc_easy.jsonl",
    "hellaswag_zeroshot": "hellaswag_sample2000.jsonl",
    "lambada_openai": "lambada_openai.jsonl",
    "winogrande": "winogrande.jsonl",
}
AIMS = {"arc_easy": 2.5, "hellaswag_zeroshot": 2.0, "lambada_openai": 1.4}
"""How many times faster Lathe should be than the peer at its best batch size."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold what a model said of an item: each option's log-probability in nats, its pick, and whether it is right."""

    log_probs: tuple[float, ...]
    pick: int
    correct: bool


def make_models(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Make each model twice: Lathe's folder, and Hugging Face's."""
    trained = SHARED / "weights/stories260K_hf"
    import_checkpoint(trained, folder / "stories")
    shape = Shape.of(d_model=192, n_layers=4, n_heads=6, d_ff=512, vocab_size=8192, max_seq_len=1024)
    save_checkpoint(folder / "random", shape, build(shape, scheme="llama", seed=0).state_dict())
    (folder / "random/tokenizer.json").write_bytes((SHARED / "tokenizers/bpe8192.json").read_bytes())
    (folder / "random/generation_config.json").write_text('{"eos_token_id": 0}')
    export_checkpoint(folder / "random", folder / "random-hf", to="hf")
    return {
        "stories260K": (folder / "stories", trained),
        f"random {shape.params / 1e6:.1f}M": (folder / "random", folder / "random-hf"),
    }


def read_questions(data: Path, task: Task, *, limit: int | None) -> list[Question]:
    """Read a task's first items, without examples."""
    return ask(read_items(data / FILES[task.name], task.kind), task, shots=0)[:limit]


def open_peer(folder: Path) -> Any:
    """Open the harness's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32")


def ask_peer(model: Any, task: Task, questions: Sequence[Question], *, batch_size: int) -> list[Answer]:
    """Answer questions as the harness would."""
    from lm_eval.api.instance import Instance

    model.batch_size_per_gpu = batch_size
    requests = [
        Instance("loglikelihood", {}, pair, i, (task.name, question.number, 1))
        for question in questions
        for i, pair in enumerate(question.pairs)
    ]
    found = iter(model.loglikelihood(requests, disable_tqdm=True))
    answers = []
    for question in questions:
        log_probs, greedy = zip(*(next(found) for _ in question.pairs), strict=True)
        pick = max(range(len(log_probs)), key=log_probs.__getitem__)
        answers.append(Answer(log_probs, pick, greedy[0] if len(greedy) == 1 else pick == question.gold))
    return answers


def compare(mine: Sequence[ItemResult], theirs: Sequence[Answer], *, name: str) -> list[dict[str, Any]]:
    """Say how far two models' answers to the same questions are the same; of one option, whether greedy decoding."""
    same = [
        a.correct == b.correct if len(a.log_probs) == 1 else a.pick == b.pick for a, b in zip(mine, theirs, strict=True)
    ]
    apart = [
        abs(x - y) / tokens
        for a, b in zip(mine, theirs, strict=True)
        for x, y, tokens in zip(a.log_probs, b.log_probs, a.tokens, strict=True)
    ]
    accuracy, its = (100 * statistics.mean(one.correct for one in answers) for answers in (mine, theirs))
    return [
        row(f"{name}: identical picks of {len(mine)}", 100 * statistics.mean(same), "%"),
        row(f"{name}: accuracy", accuracy, "%", peer="lm-eval hf", peer_value=its)
        if accuracy
        else row(f"{name}: accuracy, both", its, "%"),
        row(f"{name}: log-probability a token apart by, at most", max(apart), "nats"),
    ]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def measure(
    ours: Any, peer: Any, task: Task, questions: Sequence[Question], *, name: str, rounds: int
) -> list[dict[str, Any]]:
    """Answer a task's questions with both in turns."""
    few = questions[: max(BATCH_SIZES)]
    ways: dict[str, Callable[[Sequence[Question]], Any]] = {}
    for size in BATCH_SIZES:
        ways[f"lm-eval hf, batch {size}"] = lambda some, size=size: ask_peer(peer, task, some, batch_size=size)
        ways[f"lathe {size}"] = lambda some: answer_questions(ours, task, some)
    for way in ways.values():
        way(few)  # warm up
    seconds: dict[str, list[float]] = {}
    answers: dict[str, Any] = {}
    for _ in range(rounds):
        for label, way in ways.items():
            spent, answers[label] = timed(lambda way=way: way(questions))
            seconds.setdefault("lathe" if label.startswith("lathe") else label, []).append(spent)
    each = {label: 1e3 * statistics.median(spent) / len(questions) for label, spent in seconds.items()}
    mine, rows = each.pop("lathe"), compare(answers["lathe 1"], answers["lm-eval hf, batch 1"], name=name)
    best = min(each, key=each.__getitem__)
    for label, value in each.items():
        of = " (its best)" if label == best else " (its default)" if label.endswith(" 1") else ""
        rows.append(row(f"{name}: an item", mine, "ms", peer=label + of, peer_value=value))
    rows.append(row(f"{name}: items", 1e3 / mine, "1/s"))
    rows.append(row(f"{name}: items, {best}", 1e3 / each[best], "1/s"))
    if task.name in AIMS:
        aim = each[best] / AIMS[task.name]
        rows.append(
            row(f"{name}: an item", mine, "ms", peer=f"aim, at most: {best} / {AIMS[task.name]}", peer_value=aim)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--data", type=Path, default=SHARED / "eval/icl", help="the folder with the items' files")
    parser.add_argument("--limit", type=int, help="only a task's first items")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(FILES), default=list(FILES))
    given = parser.parse_args()
    if not (given.data.is_dir() and SHARED.is_dir()):
        sys.exit("needs the real data in a folder shared/data beside the checkout; it is not there")
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    tasks = load_catalogue().tasks
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, (checkpoint, foreign) in make_models(Path(folder)).items():
            ours, peer = open_scorer(checkpoint), open_peer(foreign)
            logging.getLogger("lm_eval").setLevel(logging.ERROR)  # a line for each item that is cut
            for task in (tasks[name] for name in given.tasks):
                questions = read_questions(given.data, task, limit=given.limit)
                rows += measure(ours, peer, task, questions, name=f"{model}, {task.name}", rounds=given.rounds)
    publish("evals", rows, save=given.save)


if __name__ == "__main__":
    main()
