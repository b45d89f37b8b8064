"""Say what is asked of a model in service, and how long it takes: one word for predicted and for measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lathe.errors import WorkloadError, nearest
from lathe.shape import DTYPE_BYTES

ENGINES = ("eager", "graph")
"""How predictions see an engine: the host launches every operation of a step, or none."""
PREDICTED_AS: Mapping[str, str] = {"eager": "eager", "compile": "graph", "graph": "graph"}
"""Which of ENGINES each measured engine is. Compiled code runs a step as a few fused kernels: no launches to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Hold a batch of prompts of one length, the tokens to generate for each, and the weights' dtype.

    `int8` and `int4` quantise weights only; activations and KV cache stay in bf16. The first new token comes out of
    reading the prompt, so there are new_tokens - 1 decoding steps. Raises WorkloadError for anything but counts ≥ 1.
    """

    batch: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 256
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "new_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise WorkloadError(f"{name}={value!r}; wanted a whole number of 1 or more")
        if self.dtype not in DTYPE_BYTES:
            raise WorkloadError(f"unknown dtype {self.dtype!r}{nearest(str(self.dtype), DTYPE_BYTES)}")

    @property
    def activation_dtype(self) -> str:
        """Name the dtype of activations and KV cache."""
        return "bf16" if self.dtype in ("int8", "int4") else self.dtype

    @property
    def context(self) -> int:
        """Count the positions in the KV cache at the end."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Hold how long a workload takes and what it needs; predicted or measured.

    Seconds for the whole batch; `tokens_per_s` counts new tokens of all sequences over the whole time. A prediction
    over columns of shapes has arrays for numbers. `prefill_bound` and `decode_bound` name what limits each phase:
    "launch", "bandwidth" or "compute" (of a prediction only).

    The rest is a measurement's only. Its seconds are medians over `runs`; `p95` has the 95th percentiles of
    "prefill_s", "decode_s" and "total_s", and `spread` is (p95 - p50)/p50 of the total. `warmup_runs` went before, and
    `steady` says whether the times had settled by then. `prepare_s` is what compiling or capturing took. `conditions`
    names the device, clocks, threads and versions, and what `activation_bytes` rest on: all memory that is neither
    weights nor cache.
    """

    prefill_s: Any
    decode_s: Any
    weight_bytes: Any
    kv_bytes: Any
    activation_bytes: Any
    tokens_per_s: Any
    engine: str
    prefill_bound: Any = None
    decode_bound: Any = None
    backend: str | None = None
    spread: float | None = None
    runs: int | None = None
    p95: dict[str, float] | None = None
    warmup_runs: int | None = None
    steady: bool | None = None
    prepare_s: float | None = None
    conditions: dict[str, str] | None = None

    @property
    def total_s(self) -> Any:
        """Add prompt and decoding."""
        return self.prefill_s + self.decode_s

    @property
    def first_token_s(self) -> Any:
        """Give the time to the first token: reading the prompt makes it."""
        return self.prefill_s

    @property
    def memory_bytes(self) -> Any:
        """Add weights, KV cache at the end, and the largest activations."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes
