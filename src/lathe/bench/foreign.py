"""Serve the same weights with other libraries: written as a checkpoint, and exported to what each of them reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lathe.bench.conditions import synchronise
from lathe.bench.job import Job, Session, write_model
from lathe.bench.steady import Trial
from lathe.model.remarks import mute_torchao

Tokens = tuple[tuple[int, ...], ...]


@contextmanager
def open_hf(job: Job) -> Iterator[Session]:
    """Load the exported model into Transformers, with its default attention and cache."""
    from lathe.hub.exporting import export_checkpoint
    from lathe.model.checkpoint import DTYPES

    with write_model(job) as folder, mute_torchao():
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        export_checkpoint(folder / "checkpoint", folder / "hf", to="hf")
        logging.disable_progress_bar()  # ours is enough
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=DTYPES[job.workload.dtype])
        logging.enable_progress_bar()
    model = model.to(job.device).eval()
    # No end token: generation always runs to its length, without a rule that forbids the token at every step.
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    tokens_bt = torch.tensor(job.prompts(), device=job.device)

    def generate(count: int) -> Tokens:
        with torch.inference_mode():
            all_bt = model.generate(
                tokens_bt, attention_mask=torch.ones_like(tokens_bt), do_sample=False, use_cache=True,
                min_new_tokens=count, max_new_tokens=count,
            )  # fmt: skip
        synchronise(job.device)
        return tuple(map(tuple, all_bt[:, tokens_bt.shape[1] :].tolist()))

    yield Session(once=lambda: time_whole(generate, job.workload.new_tokens))


@contextmanager
def open_vllm(job: Job) -> Iterator[Session]:
    """Load the exported model into vLLM's offline interface; prompts are read anew each time."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from lathe.hub.exporting import export_checkpoint

    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    work = job.workload
    with write_model(job) as folder:
        export_checkpoint(folder / "checkpoint", folder / "hf", to="hf")
        model: Any = LLM(
            model=str(folder / "hf"), dtype=names[work.dtype], skip_tokenizer_init=True, seed=job.seed,
            max_model_len=work.context, max_num_seqs=work.batch, enforce_eager=job.engine == "eager",
            enable_prefix_caching=False,
        )  # fmt: skip
    asked = [{"prompt_token_ids": prompt} for prompt in job.prompts()]

    def generate(count: int) -> Tokens:
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        found = model.generate(asked, sampling, use_tqdm=False)
        return tuple(tuple(one.outputs[0].token_ids) for one in found)

    yield Session(once=lambda: time_whole(generate, work.new_tokens))


@contextmanager
def open_llama_cpp(job: Job) -> Iterator[Session]:
    """Load the exported model into llama.cpp, with as many threads as torch has."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    from lathe.hub.gguf import export_gguf

    work, threads = job.workload, torch.get_num_threads()
    with write_model(job) as folder:
        export_gguf(folder / "checkpoint", folder / "model.gguf")
        # The file may go once it is read: without mmap the weights are the process's own.
        model: Any = Llama(
            str(folder / "model.gguf"), n_ctx=work.context, n_threads=threads, n_threads_batch=threads, use_mmap=False,
            n_gpu_layers=-1 if job.device.type == "cuda" else 0, verbose=False,
        )  # fmt: skip
    (prompt,) = job.prompts()

    def once() -> Trial:
        model.reset()  # else it would find the prompt already read
        start = time.perf_counter()
        stream = model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0)
        tokens = [next(stream)]
        read = time.perf_counter()
        tokens += [next(stream) for _ in range(work.new_tokens - 1)]
        end = time.perf_counter()
        decode_s = end - read if work.new_tokens > 1 else 0.0
        return Trial(prefill_s=read - start, decode_s=decode_s, tokens=(tuple(tokens),))

    try:
        yield Session(once=once)
    finally:
        model.close()


def time_whole(generate: Callable[[int], Tokens], new_tokens: int) -> Trial:
    """Time a library that only generates as a whole: its first token alone is the prefill, the rest decoding."""
    start = time.perf_counter()
    tokens = generate(1)
    read = time.perf_counter()
    if new_tokens == 1:
        return Trial(prefill_s=read - start, decode_s=0.0, tokens=tokens)
    tokens = generate(new_tokens)
    total_s = time.perf_counter() - read
    prefill_s = min(read - start, total_s)
    return Trial(prefill_s=prefill_s, decode_s=total_s - prefill_s, tokens=tokens)
