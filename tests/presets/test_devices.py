"""The device presets against their vendors' figures, and the ways to look one up, read one and write one."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import codec
from lathe.device import NUMBERS, Device, Origin
from lathe.errors import CodecError, PresetError
from lathe.presets import devices
from lathe.presets.devices import device_names, device_presets, load_device, save_device

FOLDER = Path(devices.__file__).with_name("devices")

# name: dense bf16 (or fp16) TFLOP/s, fp32 TFLOP/s, memory GB/s, memory GiB, last-level cache MiB
VENDORS = {
    "a100-40gb": (312, 19.5, 1555, 40, 40),  # A100 architecture whitepaper, table 4
    "a100-80gb": (312, 19.5, 2039, 80, 40),  # A100 datasheet, SXM
    "a30": (165, 10.3, 933, 24, 24),  # A30 datasheet; L2 TechPowerUp
    "h100": (989.4, 66.9, 3350, 80, 50),  # H100 datasheet, SXM
    "h100-pcie": (756.5, 51.2, 2000, 80, 50),  # H100 datasheet, PCIe
    "h200": (989.4, 66.9, 4800, 141, 50),  # H200 datasheet
    "b200": (2250, 75, 8000, 180, 126),  # DGX B200 datasheet: 1,440 GB and 64 TB/s for eight
    "l4": (121, 30.3, 300, 24, 48),  # L4 datasheet, Ada whitepaper
    "l40s": (362.05, 91.6, 864, 48, 96),  # L40S datasheet, Ada whitepaper
    "rtx-4090": (165.2, 82.6, 1008, 24, 72),  # Ada whitepaper, appendix A, FP32 accumulate
    "rtx-5090": (209.5, 104.8, 1792, 32, 96),  # RTX Blackwell whitepaper, appendix A, FP32 accumulate
    "mi300x": (1307.4, 163.4, 5300, 192, 256),  # MI300X data sheet; Infinity Cache
    "jetson-agx-orin": (42.5, 5.3, 204.8, 64, 4),  # AGX Orin technical brief: 170 sparse INT8 TOPS of the GPU
    "jetson-orin-nano": (16.7, 2.09, 102, 8, 2),  # Orin Nano Super
    "m1": (2.6, 2.6, 68.25, 16, 8),
    "m1-max": (10.4, 10.4, 400, 64, 48),
    "m2": (3.6, 3.6, 100, 24, 8),
    "m2-max": (13.6, 13.6, 400, 96, 48),
    "m3-max": (14.3, 14.3, 400, 128, 48),
    "m4": (4.04, 4.04, 120, 32, 8),
    "m4-max": (16.2, 16.2, 546, 128, 48),
    "iphone-13": (1.37, 1.37, 34.1, 4, 32),  # A15: LPDDR4X-4266 on 64 bits; AnandTech
    "raspberry-pi-5": (0.3072, 0.1536, 17.07, 8, 2),  # 4 cores, 2.4 GHz, two 128-bit FMA pipes
    "ryzen-9-7950x": (4.608, 2.304, 83.2, 64, 64),  # 16 cores, 4.5 GHz, two channels of DDR5-5200
    "epyc-9554": (12.6976, 6.3488, 460.8, 384, 256),  # 64 cores, 3.1 GHz, twelve channels of DDR5-4800
}


def test_every_preset_is_checked_here():
    assert set(VENDORS) == set(device_names())


@pytest.mark.parametrize("name", VENDORS)
def test_figures_are_the_vendors(name):
    device, (half, full, rate, memory, cache) = load_device(name), VENDORS[name]
    assert device.peak_flops("bf16") == pytest.approx(half * 1e12)
    assert device.peak_flops("fp32") == pytest.approx(full * 1e12)
    assert device.bytes_per_s == pytest.approx(rate * 1e9)
    assert (device.memory_bytes, device.cache_bytes) == (memory * 2**30, cache * 2**20)


@pytest.mark.parametrize("name", VENDORS)
def test_presets_are_plausible_and_say_why_where_they_guess(name):
    device = load_device(name)
    assert device.cache_bytes_per_s > device.bytes_per_s
    assert 0.4 <= device.bandwidth_fraction <= 0.95
    assert 0.4 <= device.compute_fraction <= 0.9
    assert device.launch_s <= 3e-5
    assert device.step_s <= 5e-3
    assert device.origins["memory_bytes"].kind != "measured", "presets quote; calibrations measure"
    assert all(len(origin.source) > 12 for origin in device.origins.values())


def test_iphone_reaches_what_mobilellm_measured():
    device = load_device("iphone-13")  # 16.0 GB/s for 30 layers in 15.6 ms
    assert device.bytes_per_s * device.bandwidth_fraction == pytest.approx(16.0e9, rel=0.01)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("H100", "h100"),
        ("h100 pcie", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("A100_40GB", "a100-40gb"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("iPhone 13", "iphone-13"),
        ("AMD EPYC 9554", "epyc-9554"),
        ("M3 Max", "m3-max"),
    ],
)
def test_names_are_easy_to_type(typed, name):
    assert load_device(typed) is device_presets()[name]


def test_typed_names_are_unambiguous():
    names = [re.sub(r"\s", "-", device.name.lower()) for device in device_presets().values()]
    short = [name.partition("-")[2] for name in names]
    assert len({*names}) == len({*short}) == len(names)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("a100", "'a100-40gb' or 'a100-80gb'"),
        ("mi300", "'mi300x'"),
        ("iphone-31", "'iphone-13'"),
        ("toaster", "known: "),
    ],
)
def test_an_unknown_name_gets_the_nearest(typed, hint):
    with pytest.raises(PresetError, match=f"no device preset is called {typed!r}.*{hint}"):
        load_device(typed)


def test_presets_are_written_as_save_device_writes(tmp_path):
    for file in FOLDER.glob("*.toml"):
        save_device(load_device(file), tmp_path / file.name)
        assert (tmp_path / file.name).read_text("utf-8") == file.read_text("utf-8"), file.name


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
FRACTION = st.floats(min_value=0, max_value=1, exclude_min=True)


@st.composite
def made_devices(draw) -> Device:
    peaks = draw(st.dictionaries(st.sampled_from(["fp32", "bf16", "fp16"]), POSITIVE, min_size=1))
    price = draw(st.none() | POSITIVE)
    numbers = {n: draw(FRACTION if n.endswith("fraction") else POSITIVE) for n in NUMBERS}
    named = [f"flops_per_s.{d}" for d in peaks] + [*NUMBERS] + ["price_per_hour"] * (price is not None)
    ends = st.none() | st.tuples(POSITIVE, POSITIVE).map(sorted)
    origins = {}
    for name in named:
        low, high = draw(ends) or (None, None)
        kind = draw(st.sampled_from(["vendor", "published", "measured", "assumed"]))
        origins[name] = Origin(kind=kind, source=draw(TEXT), low=low, high=high)
    words = {"name": draw(TEXT), "family": draw(TEXT), "notes": draw(st.just("") | TEXT)}
    return Device(flops_per_s=peaks, origins=origins, price_per_hour=price, **words, **numbers)


@given(device=made_devices(), suffix=st.sampled_from([".toml", ".json"]))
def test_a_saved_device_comes_back_to_the_bit(tmp_path_factory, device, suffix):
    path = tmp_path_factory.getbasetemp() / f"device{suffix}"
    save_device(device, path)
    found = load_device(path)
    assert found == device
    assert [v.hex() for v in found.numbers.values()] == [v.hex() for v in device.numbers.values()]


def test_numbers_are_readable(tmp_path):
    save_device(load_device("h100"), tmp_path / "h100.toml")
    text = (tmp_path / "h100.toml").read_text("utf-8")
    for line in ("bytes_per_s = 3.35e12", "memory_bytes = 85_899_345_920", "launch_s = 8e-6", "bf16 = 989.4e12"):
        assert f"\n{line}\n" in text


PI = (FOLDER / "raspberry-pi-5.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("step_s = 0.002", "stp_s = 0.002", "unknown key 'stp_s'; did you mean 'step_s'"),
        ("step_s = 0.002", "", "the key 'step_s' of a Device is missing"),
        ("step_s = 0.002", 'step_s = "2 ms"', 'step_s is "2 ms"; it should be a number'),
        ("step_s = 0.002", "step_s = -0.002", "step_s=-0.002; wanted zero or more"),
        ("step_s = 0.002", "step_s = nan", "step_s is nan"),
        ("bandwidth_fraction = 0.55", "bandwidth_fraction = 5.5", "at most 1"),
        ("fp16 = 307.2e9", "fp61 = 307.2e9", "did you mean 'fp16'"),
        ('"assumed"', '"guessed"', '"guessed"; known: assumed'),
        ('step_s = { kind = "assumed"', 'stp_s = { kind = "assumed"', "did you mean 'step_s'"),
        ('lathe = "device"', 'lathe = "shape"', "holds a shape, and a device was wanted"),
        ("step_s = 0.002", "step_s = ", "not TOML"),
    ],
)
def test_a_wrong_file_names_its_fault(tmp_path, old, new, message):
    path = tmp_path / "pi.toml"
    assert old in PI
    path.write_text(PI.replace(old, new), "utf-8")
    with pytest.raises(CodecError, match=message) as caught:
        load_device(path)
    assert str(caught.value).startswith(str(path))


def test_a_number_without_its_origin(tmp_path):
    path = tmp_path / "pi.toml"
    path.write_text(re.sub(r"(?m)^step_s = \{.*$", "", PI), "utf-8")
    with pytest.raises(CodecError, match="no origin for step_s"):
        load_device(path)


def test_a_file_without_a_tag_is_read(tmp_path):
    path = tmp_path / "pi.toml"
    path.write_text(PI.replace('lathe = "device"\nversion = 1\n', ""), "utf-8")
    assert load_device(path) == load_device("raspberry-pi-5")


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(CodecError, match=r"should end in \.toml or \.json"):
        save_device(load_device("m1"), tmp_path / "m1.txt")
    with pytest.raises(CodecError, match="cannot be written"):
        save_device(load_device("m1"), tmp_path / "none" / "m1.toml")
    with pytest.raises(CodecError, match="cannot be read"):
        load_device(tmp_path / "none.toml")
    assert not list(tmp_path.iterdir())


def test_devices_are_words():
    assert codec.decode(Device, codec.encode(load_device("b200"))) == load_device("b200")
