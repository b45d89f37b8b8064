"""Continue prompts: one token a sequence and step, until a stop token or the number asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lathe.errors import WorkloadError
from lathe.model.checkpoint import explain_memory
from lathe.model.decoder import Decoder, check_positions
from lathe.model.engine import Engine, check_prompts, open_engine
from lathe.model.sampling import Sampling, pick_tokens

SLOTS_MULTIPLE = 64
"""Compiled caches are a multiple of this long, so that prompts of about one length share a compiled step."""


class NoNumbers(WorkloadError):
    """Refuse logits that are no numbers; `prompts` are the places of those that gave them."""

    def __init__(self, prompts: Sequence[int]) -> None:
        super().__init__(
            f"prompt {prompts[0] + 1}: the model's logits are no numbers; its weights, or its dtype's range, are at "
            "fault: try fp32"
        )
        self.prompts = tuple(prompts)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    engine: str | Engine = "eager",
    seed: int = 0,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt, and give the new tokens, a stop token among them where one came.

    Prompts may differ in length: no other prompt changes a sequence's tokens when they are chosen greedily. `on_token`
    is called with the prompt's index and each new token as it comes. An `Engine` that was opened before can be used
    again.

    Raises:
        WorkloadError: no prompt, an empty one, an id beyond the vocabulary, more tokens than learned positions.
        NoNumbers: logits behind a prompt that are no numbers.
        DeviceError: an engine the device does not have, or too little memory for the cache.
    """
    if not prompts or max_new_tokens < 1:
        raise WorkloadError(f"{len(prompts)} prompts, max_new_tokens={max_new_tokens}; wanted at least one of both")
    check_prompts(model, prompts)
    running = engine if isinstance(engine, Engine) else _open(model, prompts, max_new_tokens, engine)
    drawn = sampling or Sampling()
    generator = torch.Generator(device=running.cache.start_b.device).manual_seed(seed)
    new: list[list[int]] = [[] for _ in prompts]
    open_ones = set(range(len(prompts)))
    logits_bv = running.read(prompts)
    if wrong := (~logits_bv.isfinite().all(dim=-1)).nonzero().flatten().tolist():
        raise NoNumbers(wrong)
    tokens_b = pick_tokens(logits_bv, drawn, generator)
    for count in range(1, max_new_tokens + 1):
        for i, token in enumerate(tokens_b.tolist()):
            if i not in open_ones:
                continue
            new[i].append(token)
            if on_token is not None:
                on_token(i, token)
            if token in stop_tokens:
                open_ones.remove(i)
        if not open_ones or count == max_new_tokens:
            break
        tokens_b = pick_tokens(running.step(tokens_b), drawn, generator)
    return new


def _open(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, engine: str) -> Engine:
    shape, weight = model.shape, model.embedding.weight
    slots = max(map(len, prompts)) + max_new_tokens - 1  # the last new token is not read
    check_positions(shape, slots)
    if engine != "eager":
        slots += -slots % SLOTS_MULTIPLE
        slots = min(slots, shape.max_seq_len) if shape.position == "learned" else slots
    dtype = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(weight.dtype, "fp32")
    caches = shape.kv_bytes(len(prompts), slots, dtype)
    with explain_memory(shape, dtype=dtype, device=weight.device, more_bytes=caches):
        return open_engine(model, batch=len(prompts), slots=slots, engine=engine)
