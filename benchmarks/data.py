"""Set building and loading a dataset beside raw tokenizers, datatrove and plain memory-mapped reading.

Run it as `BENCH_THREADS=2 python benchmarks/data.py [--save] [--kills 30]`, with the real data in ../shared/data.

- Tokenising: `build_dataset` from files to finished shards, beside `Tokenizer.encode_batch` alone on the same documents
  (in memory already, in batches of a million characters), and beside datatrove's `DocumentTokenizer`, which writes
  files too. They take turns in one process; the best turn of each counts, as others on the machine only slow it down.
- Memory: the peak resident memory of a process that builds from the texts once, and from ten times as much.
- Loading: batches of 16 sequences of 2048, from the page cache, beside reading random windows of a memory map.
- With --kills: a build killed so often at random moments, then finished, compared byte for byte with one left alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _report import publish, row

os.environ["RAYON_NUM_THREADS"] = os.environ.get("BENCH_THREADS", "1")  # tokenizers' own threads

import numpy as np
from tokenizers import Tokenizer

from lathe.data.build import build_dataset
from lathe.data.readers import Document, Layout, find_inputs
from lathe.data.store import Dataset

DATA = Path(__file__).parents[2] / "shared/data"
TEXTS, TOKENIZER = DATA / "text", DATA / "tokenizers/gpt_neox_20b.json"
BATCH_CHARS = 2**20
TURNS = 2
TIMES = 10
SEQUENCES, SEQ_LEN, STEPS = 16, 2048, 400
MEMORY_AIM_MB, RATE_AIM, LOADER_AIM_MB = 600, 0.8, 200


def read_texts() -> list[str]:
    """Read every document, as `build_dataset` does."""
    files, _ = find_inputs([TEXTS], Layout())
    return [entry.text for file in files for entry in file.read() if isinstance(entry, Document)]


def encode_raw(texts: list[str]) -> None:
    """Encode the texts and drop what comes of them."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= BATCH_CHARS:
            tokenizer.encode_batch(batch, add_special_tokens=False)
            batch, chars = [], 0
    tokenizer.encode_batch(batch, add_special_tokens=False)


def tokenise_lathe(texts: list[str]) -> None:
    """Build a dataset from the files."""
    with tempfile.TemporaryDirectory() as folder:
        build_dataset([TEXTS], tokenizer=TOKENIZER, out=Path(folder) / "set")


def tokenise_datatrove(texts: list[str]) -> None:
    """Write datatrove's tokenised files from documents in memory."""
    from datatrove.data import Document as TheirDocument
    from datatrove.pipeline.tokens import DocumentTokenizer

    with tempfile.TemporaryDirectory() as folder:
        step = DocumentTokenizer(
            folder, tokenizer_name_or_path=str(TOKENIZER), eos_token="<|endoftext|>", shuffle_documents=False
        )
        step.run(TheirDocument(text=text, id=str(i)) for i, text in enumerate(texts))


def take_turns(calls: dict[str, Callable[[list[str]], None]], texts: list[str]) -> dict[str, float]:
    """Give the fewest seconds that each took."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call(texts)
            best[name] = min(best[name], time.perf_counter() - start)
            print(f"  {name}: {best[name]:.2f} s", file=sys.stderr, flush=True)
    return best


def measure_rates() -> list[dict[str, Any]]:
    """Compare the tokenising rates, as seconds for a megabyte of text."""
    texts = read_texts()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    peers: dict[str, Callable[[list[str]], None]] = {"raw": encode_raw, "lathe": tokenise_lathe}
    if importlib.util.find_spec("datatrove") is not None:
        peers["datatrove"] = tokenise_datatrove
    best = {name: seconds / megabytes for name, seconds in take_turns(peers, texts).items()}
    version = importlib.metadata.version("tokenizers")
    rows = [
        row("tokenise", best["lathe"], "s/MB", peer=f"tokenizers {version} encode_batch alone", peer_value=best["raw"]),
        row("share of the raw rate", best["raw"] / best["lathe"], "", peer="aim, at least", peer_value=RATE_AIM),
    ]
    if "datatrove" in best:
        peer = f"datatrove {importlib.metadata.version('datatrove')} DocumentTokenizer"
        rows.append(row("tokenise", best["lathe"], "s/MB", peer=peer, peer_value=best["datatrove"]))
    return rows


def start_build(out: Path, *, times: int, shard_tokens: int) -> subprocess.Popen[str]:
    """Build in another process, which prints its peak memory."""
    command = [
        sys.executable,
        __file__,
        "--build",
        str(out),
        "--times",
        str(times),
        "--shard-tokens",
        str(shard_tokens),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def build_here(out: Path, *, times: int, shard_tokens: int) -> None:
    """Build from the texts so many times over, and print the peak resident memory."""
    build_dataset([TEXTS] * times, tokenizer=TOKENIZER, out=out, shard_tokens=shard_tokens)
    print(read_peak())


def read_peak() -> int:
    """Read this process's peak resident memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be no less than the parent's at the fork
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory() -> list[dict[str, Any]]:
    """Measure the peak memory of a small and of a large build."""
    peaks = {}
    for times in (1, TIMES):
        with tempfile.TemporaryDirectory() as folder:
            printed, _ = start_build(Path(folder) / "set", times=times, shard_tokens=2**26).communicate()
        peaks[times] = int(printed) / 1e6
    return [
        row("peak memory, 29 MB of text", peaks[1], "MB", peer="aim, at most", peer_value=MEMORY_AIM_MB),
        row("peak memory, 288 MB of text", peaks[TIMES], "MB", peer="29 MB of text", peer_value=peaks[1]),
    ]


def measure_loader() -> list[dict[str, Any]]:
    """Compare loading rates, as seconds for a megabyte of stored tokens; two bytes each."""
    from lathe.data.loader import Loader

    megabytes = STEPS * SEQUENCES * SEQ_LEN * 2 / 1e6
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        build_dataset([TEXTS], tokenizer=TOKENIZER, out=out)
        loader = Loader(Dataset(out), seq_len=SEQ_LEN, batch_sequences=SEQUENCES, seed=0)
        ids, rng = np.memmap(out / "train-00000.bin", dtype=np.uint16, mode="r"), np.random.default_rng(0)

        def read_windows() -> None:
            """Read as nanoGPT's get_batch does."""
            for _ in range(STEPS):
                starts = rng.integers(len(ids) - SEQ_LEN, size=SEQUENCES)
                np.stack([ids[s : s + SEQ_LEN].astype(np.int64) for s in starts])
                np.stack([ids[s + 1 : s + 1 + SEQ_LEN].astype(np.int64) for s in starts])

        def load() -> None:
            for step in range(STEPS):
                loader.batch(step, 0, 1)

        calls = {"lathe": lambda _: load(), "windows": lambda _: read_windows()}
        best = {name: seconds / megabytes for name, seconds in take_turns(calls, []).items()}
    return [
        row("load", best["lathe"], "s/MB", peer="random windows of a memory map", peer_value=best["windows"]),
        row("load", 1 / best["lathe"], "MB/s", peer="aim, at least", peer_value=LOADER_AIM_MB),
    ]


def measure_kills(kills: int) -> list[dict[str, Any]]:
    """Kill a build at random moments, finish it, and compare it with one left alone."""
    rng, shard_tokens = random.Random(0), 2**17
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        start = time.perf_counter()
        start_build(whole, times=1, shard_tokens=shard_tokens).wait()
        seconds = time.perf_counter() - start
        wanted, done = {path.name: path.read_bytes() for path in whole.iterdir()}, 0
        while done < kills:
            process = start_build(killed, times=1, shard_tokens=shard_tokens)
            try:
                process.wait(rng.uniform(0, min(seconds, 2 + 2 * seconds / kills)))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
            if (killed / "dataset.json").exists() and done < kills:
                assert {path.name: path.read_bytes() for path in killed.iterdir()} == wanted
                for path in killed.iterdir():
                    path.unlink()
        start_build(killed, times=1, shard_tokens=shard_tokens).wait()
        same = {path.name: path.read_bytes() for path in killed.iterdir()} == wanted
    return [row(f"the same bytes after {kills} kills", float(same), "", peer="aim", peer_value=1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--kills", type=int, default=0, help="also kill a build so often")
    parser.add_argument("--only", choices=("rates", "memory", "loader", "kills"), help="measure this alone")
    parser.add_argument("--build", type=Path, help="build there, in this process, and print its peak memory in bytes")
    parser.add_argument("--times", type=int, default=1, help="with --build: read the texts so many times")
    parser.add_argument("--shard-tokens", type=int, default=2**26, help="with --build: tokens of a shard")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit("needs the real data in a folder shared/data beside the checkout; it is not there")
    if given.build is not None:
        build_here(given.build, times=given.times, shard_tokens=given.shard_tokens)
        return
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "rates": measure_rates, "memory": measure_memory, "loader": measure_loader,
    }  # fmt: skip
    if given.kills:
        parts["kills"] = lambda: measure_kills(given.kills)
    rows = [found for name, part in parts.items() if given.only in (None, name) for found in part()]
    publish("data" if given.only is None else f"data-{given.only}", rows, save=given.save)


if __name__ == "__main__":
    main()
