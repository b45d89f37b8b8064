"""The tables behind `lathe devices`."""

import io
import re

from rich.console import Console

from lathe.device import Origin
from lathe.presets.devices import device_presets, load_device
from lathe.report.device_tables import device_table, devices_table


def printed(renderable, width=250) -> str:
    page = io.StringIO()
    Console(file=page, width=width).print(renderable)
    return page.getvalue()


def row(text, name) -> list[str]:
    line = next(line for line in text.splitlines() if line.split("  ")[0] == name)
    return re.split(r"\s{2,}", line.strip())


def test_all_devices_one_row_each():
    text = printed(devices_table(device_presets()))
    assert row(text, "a100-40gb") == ["a100-40gb", "NVIDIA A100 SXM 40GB", "312", "1,555", "40", "40", "201"]
    assert row(text, "b200") == ["b200", "NVIDIA B200", "2,250", "8,000", "180", "126", "281"]
    assert row(text, "iphone-13") == ["iphone-13", "Apple iPhone 13", "1.37", "34.1", "4", "32", "40.2"]
    assert all(f"\n{name} " in text for name in device_presets())


def test_one_device_says_where_every_number_is_from():
    device = load_device("a100-40gb")
    text = printed(device_table(device), width=400)
    for name, origin in device.origins.items():
        assert row(text, name)[1] == origin.kind
        assert row(text, name)[-1] == origin.source
    assert row(text, "bytes_per_s")[2] == "1,555 GB/s"
    assert row(text, "cache_bytes_per_s")[2] == "4,800 GB/s"
    assert row(text, "memory_bytes")[2] == "40 GiB"
    assert row(text, "launch_s")[2] == "17.9 µs"
    assert row(text, "compute_fraction")[2] == "70 %"
    assert "interval" not in text
    assert "201 FLOP per byte" in text


def test_a_calibrated_device_shows_its_intervals_and_notes():
    origin = Origin(kind="measured", source="two latencies", low=16e-6, high=19e-6)
    device = load_device("jetson-agx-orin").with_numbers({"launch_s": origin}, launch_s=18e-6)
    text = printed(device_table(device), width=400)
    assert row(text, "launch_s") == ["launch_s", "measured", "18 µs", "16–19 µs", "two latencies"]
    assert row(text, "step_s")[3] == "–"
    assert "MAXN power mode." in text


def test_narrow_terminals_fold_sources_only():
    text = printed(device_table(load_device("h100")), width=80)
    assert "989.4 TFLOP/s" in text
    assert "bandwidth_fraction" in text
