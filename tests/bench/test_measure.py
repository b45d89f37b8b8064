"""Real measurements of tiny decoders, and what cannot be measured."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lathe.bench import backends
from lathe.bench import measure as measuring
from lathe.bench.backends import BACKENDS
from lathe.bench.conditions import MemoryMeter, use_threads
from lathe.bench.job import Job, Session, find_target, make_model
from lathe.bench.measure import measure
from lathe.bench.native import open_lathe
from lathe.errors import (
    CheckpointError,
    DeviceError,
    LatheError,
    MissingBackendError,
    MissingExtraError,
    PresetError,
    WorkloadError,
)
from lathe.model.checkpoint import load_model, save_checkpoint
from lathe.model.init import build
from lathe.shape import Shape
from lathe.workload import Workload

TINY = Shape.of(d_model=32, n_layers=2, n_heads=2, d_ff=64, vocab_size=96)
SHORT = Workload(prompt_tokens=5, new_tokens=4, dtype="fp32")
CPU = torch.device("cpu")
needs_hf = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the extra hf")
# transformers imports torchao, whose import warns of torch's own changes
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_job(**changes: object) -> Job:
    job = Job(target=find_target(TINY), workload=SHORT, engine="eager", device=CPU)
    return dataclasses.replace(job, **changes)


def test_a_measurement_is_a_latency_with_its_conditions() -> None:
    found = measure(TINY, SHORT, runs=1, threads=1)
    assert (found.engine, found.backend) == ("eager", "lathe")
    assert found.prefill_s > 0
    assert found.decode_s > 0
    assert found.tokens_per_s > 0
    assert found.runs is not None
    assert found.runs >= 6
    assert found.p95 is not None
    assert found.p95["total_s"] >= found.p95["decode_s"] > 0
    assert found.weight_bytes == TINY.weight_bytes("fp32")
    assert found.kv_bytes == TINY.kv_bytes(1, 9, "fp32")
    assert found.memory_bytes >= found.weight_bytes + found.kv_bytes
    assert found.conditions is not None
    assert found.conditions["threads"] == "1"
    assert found.conditions["torch"] == torch.__version__
    assert {"device", "python", "lathe", "memory"} <= set(found.conditions)


def test_what_a_backend_loads_once_is_there_before_memory_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def note(job: Job) -> AbstractContextManager[Session]:
        seen.append(job.shape)
        return open_lathe(job)

    class Meter(MemoryMeter):
        def __init__(self, device: torch.device) -> None:
            seen.append("meter")
            super().__init__(device)

    monkeypatch.setitem(backends.BACKENDS, "lathe", dataclasses.replace(BACKENDS["lathe"], open=note))
    monkeypatch.setattr(measuring, "MemoryMeter", Meter)
    measure(TINY, SHORT, runs=1, threads=1)
    assert seen == [measuring.TINY, "meter", TINY]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    measure(TINY, SHORT, runs=1, threads=1)
    assert torch.get_num_threads() == before


def test_one_new_token_has_no_decoding() -> None:
    found = measure(TINY, Workload(batch=2, prompt_tokens=3, new_tokens=1, dtype="bf16"), runs=1, threads=1)
    assert found.decode_s == 0
    assert found.weight_bytes == TINY.weight_bytes("bf16")


def test_greedy_tokens_are_the_full_forwards() -> None:
    job = make_job(workload=dataclasses.replace(SHORT, batch=2))
    with BACKENDS["lathe"].open(job) as session:
        (first, second) = session.once().tokens
        assert session.once().tokens == (first, second), "a run leaves nothing behind"
    model = make_model(job)
    for prompt, tokens in zip(job.prompts(), (first, second), strict=True):
        read = list(prompt)
        for token in tokens:
            assert token == int(model(torch.tensor([read]))[0, -1].argmax())
            read.append(token)


def test_a_checkpoint_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "trained", TINY, build(TINY, scheme="llama", seed=5).state_dict())
    job = make_job(target=find_target(tmp_path / "trained"))
    other = build(TINY, scheme="llama", seed=5)
    assert torch.equal(make_model(job).embedding.weight, other.embedding.weight)
    assert measure(tmp_path / "trained", SHORT, runs=1, threads=1).total_s > 0


@quiet
@needs_hf
def test_hugging_face_gives_the_same_tokens() -> None:
    job = make_job(workload=dataclasses.replace(SHORT, batch=2))
    with BACKENDS["lathe"].open(job) as ours, BACKENDS["hf"].open(job) as theirs:
        assert ours.once().tokens == theirs.once().tokens
    found = measure(TINY, SHORT, backend="hf", runs=1, threads=1)
    assert (found.engine, found.backend) == ("eager", "hf")
    assert found.conditions is not None
    assert "transformers" in found.conditions


def test_llama_cpp_reads_the_prompt_anew_and_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library, which is not installed here."""
    calls: list[tuple[object, ...]] = []

    class Llama:
        def __init__(self, path: str, **given: object) -> None:
            calls.append(("load", Path(path).read_text(), given["n_ctx"], given["n_threads"]))

        def reset(self) -> None:
            calls.append(("reset",))

        def generate(self, prompt: list[int], *, top_k: int, temp: float, repeat_penalty: float) -> Iterator[int]:
            calls.append(("prompt", tuple(prompt)))
            yield from range(99)

        def close(self) -> None:
            calls.append(("close",))

    def export(folder: Path, path: Path) -> None:
        path.write_text(load_model(folder).embedding.weight.dtype.__repr__())

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    monkeypatch.setitem(sys.modules, "lathe.hub.gguf", SimpleNamespace(export_gguf=export))
    job = make_job(engine="graph")
    with use_threads(1), BACKENDS["llama.cpp"].open(job) as session:
        found = session.once()
    assert found.tokens == ((0, 1, 2, 3),)
    assert calls == [("load", "torch.float32", 9, 1), ("reset",), ("prompt", tuple(job.prompts()[0])), ("close",)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backend": "lath"}, WorkloadError, "unknown backend 'lath'; did you mean 'lathe'"),
        ({"engine": "egaer"}, WorkloadError, "the backend lathe has no engine 'egaer'; did you mean 'eager'"),
        ({"device": "quantum"}, DeviceError, "cannot use the device 'quantum'"),
        ({"runs": 0}, WorkloadError, "runs=0; wanted"),
        ({"threads": -1}, WorkloadError, "threads=-1; wanted"),
    ],
)
def test_bad_questions(changes: dict[str, object], error: type[LatheError], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(TINY, SHORT, **changes)  # pyright: ignore[reportArgumentType]


def test_bad_targets(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="no shape preset"):
        measure("gpt-5", SHORT)
    with pytest.raises(CheckpointError, match="no Lathe checkpoint"):
        measure(tmp_path, SHORT)


def test_more_tokens_than_learned_positions() -> None:
    short = dataclasses.replace(TINY, position="learned", max_seq_len=6)
    with pytest.raises(WorkloadError, match="need 8 positions, but the shape learns 6"):
        measure(short, SHORT)


def test_no_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match="cannot use the device 'cuda'"):
        measure(TINY, SHORT, device="cuda")


def test_a_dtype_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(dtype: str, device: torch.device) -> None:
        raise DeviceError(f"{device} does not compute in {dtype}")

    monkeypatch.setattr(backends, "check_dtype", lacks)
    with pytest.raises(DeviceError, match="cpu does not compute in fp32"):
        measure(TINY, SHORT)


@needs_hf
def test_backends_say_what_they_cannot() -> None:
    with pytest.raises(DeviceError, match="the backend hf cannot serve int8 here; it can fp32, bf16, fp16"):
        measure(TINY, Workload(dtype="int8"), backend="hf")


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingBackendError, match=r"llama\.cpp is not installed; run: pip install llama-cpp-python"):
        measure(TINY, SHORT, backend="llama.cpp")
    with pytest.raises(MissingBackendError, match="pip install vllm"):
        measure(TINY, SHORT, backend="vllm")
    with pytest.raises(MissingExtraError, match=r'pip install "lathe\[hf\]"'):
        measure(TINY, SHORT, backend="hf")


def test_too_little_memory_says_what_was_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(job: Job) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setitem(backends.BACKENDS, "lathe", dataclasses.replace(BACKENDS["lathe"], open=fill))
    with pytest.raises(DeviceError, match="ran out of memory: weights in fp32 and caches need"):
        measure(TINY, SHORT)
