"""Run a decoder token by token: prompts are read at once, then each step reads one token a sequence.

Axes in names: b batch, t time, v vocabulary.

- `eager` runs the decoder as it is.
- `compile` compiles the step: on a CPU ahead of time with packed weights (`lathe.model.compiled`), on a GPU through
  torch.compile.
- `graph`, on GPUs only, also captures the compiled step as a CUDA graph, so that one launch runs all its kernels.

Prompts are read eagerly by all three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lathe.errors import DeviceError, WorkloadError, nearest
from lathe.model.cache import KVCache
from lathe.model.compiled import Step, compile_for_cpu
from lathe.model.decoder import Decoder, check_positions

Stepper = Callable[[Tensor, Tensor], Tensor]


class Engine:
    """Hold a decoder, its cache, and how a step runs: use it for one batch of prompts after another.

    `prepare_s` is what compiling or capturing took; `reused` says that an earlier run's compiled step was found.
    """

    def __init__(self, model: Decoder, *, batch: int, slots: int, kind: str) -> None:
        weight = model.embedding.weight
        self.model, self.kind, self.prepare_s, self.reused = model, kind, 0.0, False
        self.cache = KVCache.allocate(
            model.shape, batch=batch, slots=slots, dtype=weight.dtype, device=weight.device, whole=kind != "eager"
        )
        self.stepper: Stepper | None = None
        if (prepare := ENGINES[kind]) is not None:
            with torch.no_grad():
                self.stepper, self.prepare_s, self.reused = prepare(model, self.cache)

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts from their beginning, and give the logits after each one's last token, [b, v]."""
        check_prompts(self.model, prompts)
        longest = max(map(len, prompts))
        self.cache.begin([len(p) for p in prompts])
        padded = [[0] * (longest - len(p)) + list(p) for p in prompts]
        tokens_bt = torch.tensor(padded, device=self.cache.start_b.device)
        return self.model.logits(self.model.extend(tokens_bt, self.cache)[:, -1:])[:, -1]

    @torch.inference_mode()
    def step(self, tokens_b: Tensor) -> Tensor:
        """Read one more token a sequence, and give the logits after it, [b, v]."""
        if self.stepper is None:
            return self.model.logits(self.model.extend(tokens_b[:, None], self.cache))[:, -1]
        if self.cache.used >= self.cache.slots:
            raise WorkloadError(f"the cache's {self.cache.slots} slots are used up; open an engine with more")
        slot_1 = torch.tensor([self.cache.used], device=tokens_b.device)
        self.cache.used += 1
        return self.stepper(tokens_b[:, None], slot_1)


def open_engine(model: Decoder, *, batch: int, slots: int, engine: str = "eager") -> Engine:
    """Make an engine for `batch` sequences of at most `slots` tokens.

    Raises:
        WorkloadError: unknown engine, more slots than learned positions, or no compiler.
        DeviceError: an engine that the device does not have.
    """
    if engine not in ENGINES:
        raise WorkloadError(f"unknown engine {engine!r}{nearest(str(engine), ENGINES)}")
    check_positions(model.shape, slots)
    return Engine(model, batch=batch, slots=slots, kind=engine)


def check_prompts(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that are empty, or have ids that the embedding lacks. Raises WorkloadError."""
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise WorkloadError(f"prompt {i + 1} is empty; give at least one token, such as the beginning-of-text id")
        if not 0 <= min(prompt) <= max(prompt) < model.shape.vocab_size:
            raise WorkloadError(
                f"prompt {i + 1} has token {max(prompt) if min(prompt) >= 0 else min(prompt)}; the vocabulary has ids "
                f"0 to {model.shape.vocab_size - 1}"
            )


def _compile(model: Decoder, cache: KVCache) -> tuple[Stepper, float, bool]:
    if cache.start_b.device.type == "cpu":
        return compile_for_cpu(model, cache)
    started = time.perf_counter()
    compiled = torch.compile(Step(model), mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)

    def step(tokens_b1: Tensor, slot_1: Tensor) -> Tensor:
        return compiled(tokens_b1, slot_1, cache.start_b, cache.keys, cache.values)

    step(*_blank(cache))
    torch.cuda.synchronize(cache.start_b.device)
    return step, time.perf_counter() - started, False


def _capture(model: Decoder, cache: KVCache) -> tuple[Stepper, float, bool]:
    """Capture the compiled step; its inputs stand in fixed tensors, which every call fills anew."""
    device = cache.start_b.device
    if device.type != "cuda":
        raise DeviceError(f"engine 'graph' captures CUDA graphs, and the model is on {device}; use 'compile' there")
    step, seconds, _ = _compile(model, cache)
    started = time.perf_counter()
    tokens_b1, slot_1 = _blank(cache)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # capture wants kernels loaded and workspaces made
        for _ in range(3):
            step(tokens_b1, slot_1)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits_bv = step(tokens_b1, slot_1)

    def replay(tokens: Tensor, slot: Tensor) -> Tensor:
        tokens_b1.copy_(tokens)
        slot_1.copy_(slot)
        graph.replay()
        return logits_bv.clone()

    return replay, seconds + time.perf_counter() - started, False


def _blank(cache: KVCache) -> tuple[Tensor, Tensor]:
    device = cache.start_b.device
    tokens_b1 = torch.zeros(len(cache.start_b), 1, dtype=torch.long, device=device)
    return tokens_b1, torch.zeros(1, dtype=torch.long, device=device)


ENGINES: dict[str, Callable[[Decoder, KVCache], tuple[Stepper, float, bool]] | None] = {
    "eager": None,
    "compile": _compile,
    "graph": _capture,
}
"""How each engine prepares a step: gives it, the seconds that took, and whether it was found ready."""
