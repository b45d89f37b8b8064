"""A device holds only numbers that can be, each with its origin."""

import dataclasses
import math

import numpy as np
import pytest

from lathe import codec
from lathe.device import COMPUTED_IN, NUMBERS, Device, Origin
from lathe.errors import CodecError, DeviceError
from lathe.shape import DTYPE_BYTES

NAMES = ("flops_per_s.fp32", "flops_per_s.bf16", *NUMBERS)


def fields(**changes):
    given = {
        "name": "box",
        "flops_per_s": {"fp32": 1e13, "bf16": 1e14},
        "bytes_per_s": 1e12,
        "memory_bytes": 2**34,
        "cache_bytes": 2**25,
        "cache_bytes_per_s": 4e12,
        "launch_s": 5e-6,
        "step_s": 1e-3,
        "compute_fraction": 0.7,
        "bandwidth_fraction": 0.8,
        "origins": {name: Origin(kind="assumed", source="a test") for name in NAMES},
    }
    return given | changes


def test_every_number_is_named_and_a_float():
    device = Device(**fields(bytes_per_s=np.float64(1e12), cache_bytes=np.int64(7), launch_s=-0.0))
    assert tuple(device.numbers) == tuple(device.origins) == NAMES
    assert {type(value) for value in device.numbers.values()} == {float}
    assert math.copysign(1, device.launch_s) == 1
    assert device.flops_per_byte == 100


def test_what_was_given_can_change_without_the_device():
    given = fields()
    device = Device(**given)
    given["flops_per_s"]["bf16"] = 1.0
    given["origins"].clear()
    assert device == Device(**fields())


def test_zero_overheads_and_no_cache_are_allowed():
    assert Device(**fields(cache_bytes=0, launch_s=0, step_s=0)).launch_s == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes_per_s": -1.0}, r"device 'box': bytes_per_s=-1; wanted a number above zero"),
        ({"bytes_per_s": 0}, "wanted a number above zero"),
        ({"launch_s": -1e-6}, "launch_s=-1e-06; wanted zero or more"),
        ({"memory_bytes": math.nan}, "memory_bytes=nan; wanted a finite number"),
        ({"memory_bytes": math.inf}, "finite"),
        ({"memory_bytes": "80GB"}, "memory_bytes='80GB'; wanted a number"),
        ({"step_s": True}, "step_s=True; wanted a number"),
        ({"step_s": None}, "step_s=None; wanted a number"),
        ({"bandwidth_fraction": 1.2}, r"bandwidth_fraction=1.2; a fraction of peak is at most 1"),
        ({"compute_fraction": 0}, "compute_fraction=0; wanted a number above zero"),
        ({"flops_per_s": {}}, "at least one dtype"),
        ({"flops_per_s": {"fp32": 1e13, "bf61": 1e14}}, "'bf61', but it is unknown; did you mean 'bf16'"),
        ({"flops_per_s": {"int4": 1e14}}, "computed in a wider one"),
        ({"flops_per_s": {"int8": 1e14}}, "int8 alone"),
        ({"flops_per_s": {"fp32": 1e13, "bf16": -1e14}}, "flops_per_s.bf16=-1e"),
        ({"price_per_hour": 2.0}, "no origin for price_per_hour"),
        ({"price_per_hour": -2.0}, "price_per_hour=-2"),
        ({"name": " "}, "a device needs a name"),
        ({"family": ""}, "a device needs a family"),
    ],
)
def test_wrong_numbers_say_what_was_wanted(changes, message):
    with pytest.raises(DeviceError, match=message):
        Device(**fields(**changes))


def test_every_number_needs_its_origin_and_no_other():
    origins = fields()["origins"]
    some = {name: origin for name, origin in origins.items() if name != "step_s"}
    with pytest.raises(DeviceError, match="no origin for step_s; say where each comes from"):
        Device(**fields(origins=some))
    with pytest.raises(DeviceError, match=r"speaks of 'stp_s'.*did you mean 'step_s'"):
        Device(**fields(origins=origins | {"stp_s": origins["step_s"]}))
    with pytest.raises(DeviceError, match="wanted an Origin"):
        Device(**fields(origins=origins | {"step_s": "a guess"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "vender", "source": "x"}, "did you mean 'vendor'"),
        ({"kind": "vendor", "source": "  "}, "name the document"),
        ({"kind": "measured", "source": "x", "low": 1.0}, "needs both ends"),
        ({"kind": "measured", "source": "x", "low": 2.0, "high": 1.0}, "low=2 is above high=1"),
        ({"kind": "measured", "source": "x", "low": math.nan, "high": 1.0}, "low=nan"),
    ],
)
def test_wrong_origins(given, message):
    with pytest.raises(DeviceError, match=message):
        Origin(**given)


def test_peaks_serve_dtypes():
    assert set(COMPUTED_IN) == set(DTYPE_BYTES)
    device = Device(**fields())
    assert {dtype: device.peak_flops(dtype) for dtype in DTYPE_BYTES} == {
        "fp32": 1e13,
        "bf16": 1e14,
        "fp16": 1e14,
        "int8": 1e14,
        "int4": 1e14,
    }
    with pytest.raises(DeviceError, match="did you mean 'bf16'"):
        device.peak_flops("bf-16")
    origins = {name: origin for name, origin in fields()["origins"].items() if name != "flops_per_s.fp32"}
    with pytest.raises(DeviceError, match="has no rate for fp32; it computes in bf16"):
        Device(**fields(flops_per_s={"bf16": 1e14}, origins=origins)).peak_flops("fp32")


def test_numbers_are_replaced_with_their_origins():
    device, origin = Device(**fields()), Origin(kind="measured", source="two runs", low=5e-6, high=7e-6)
    changed = device.with_numbers({"launch_s": origin}, launch_s=6e-6)
    assert (changed.launch_s, changed.origins["launch_s"]) == (6e-6, origin)
    assert dataclasses.replace(changed, launch_s=5e-6, origins=device.origins) == device
    assert device.with_numbers({"price_per_hour": origin}, price_per_hour=2.0).numbers["price_per_hour"] == 2
    with pytest.raises(DeviceError, match="launch_s is replaced without an origin"):
        device.with_numbers({"step_s": origin}, launch_s=6e-6)
    with pytest.raises(DeviceError, match="no number 'lauch_s'; did you mean 'launch_s'"):
        device.with_numbers({"lauch_s": origin}, lauch_s=6e-6)


def test_the_codec_reads_what_it_writes_and_names_the_key_of_a_fault():
    device = Device(**fields(notes="a note"))
    body = codec.encode(device)
    assert codec.decode(Device, body) == device
    with pytest.raises(CodecError, match=r"origins.step_s.kind is \"guess\""):
        codec.decode(Device, body | {"origins": body["origins"] | {"step_s": {"kind": "guess", "source": "x"}}})
