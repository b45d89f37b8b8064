"""What a workload may ask, and what a latency adds up to."""

from typing import Any

import pytest

from lathe import codec
from lathe.errors import CodecError, WorkloadError
from lathe.workload import Latency, Workload


def test_the_default_is_the_published_protocol() -> None:
    work = Workload()
    assert (work.batch, work.prompt_tokens, work.new_tokens, work.dtype) == (1, 128, 256, "bf16")
    assert work.context == 384


@pytest.mark.parametrize("name", ["batch", "prompt_tokens", "new_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None])
def test_counts_are_whole_and_positive(name: str, value: Any) -> None:
    with pytest.raises(WorkloadError, match=f"{name}=.*whole number of 1 or more"):
        Workload(**{name: value})


def test_an_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(WorkloadError, match=r"unknown dtype 'bf61'.*did you mean 'bf16'"):
        Workload(dtype="bf61")


@pytest.mark.parametrize(
    ("dtype", "wide"), [("int4", "bf16"), ("int8", "bf16"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp32")]
)
def test_quantised_weights_leave_activations_wide(dtype: str, wide: str) -> None:
    assert Workload(dtype=dtype).activation_dtype == wide


def test_reads_back_what_it_writes() -> None:
    work = Workload(batch=4, prompt_tokens=1, new_tokens=1, dtype="int8")
    assert codec.decode(Workload, codec.encode(work)) == work
    with pytest.raises(CodecError, match="wanted a whole number"):
        codec.decode(Workload, {"batch": 0})


def test_a_latency_adds_up() -> None:
    latency = Latency(
        prefill_s=0.25, decode_s=1.5, weight_bytes=10.0, kv_bytes=4.0, activation_bytes=2.0, tokens_per_s=9.0,
        engine="eager",
    )  # fmt: skip
    assert (latency.total_s, latency.first_token_s, latency.memory_bytes) == (1.75, 0.25, 16.0)
