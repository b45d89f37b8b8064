"""The numbers and tables behind `lathe shapes` and `lathe shape`."""

import io
import json

from rich.console import Console

from lathe.presets.shapes import load_shape, shape_presets
from lathe.report.accounting import accounting, accounting_table, describe, shapes_table


def printed(renderable) -> str:
    page = io.StringIO()
    Console(file=page, width=250).print(renderable)
    return page.getvalue()


def test_accounting_is_the_shapes_own_and_json():
    shape = load_shape("llama-2-7b")
    counted = json.loads(json.dumps(accounting(shape, context=1000)))
    assert counted["params"] == sum(counted["param_groups"].values()) == 6_738_415_616
    assert counted["forward_flops"] == shape.forward_flops(1000)
    assert counted["kv_bytes_per_token"]["fp16"] == 2 * 32 * 4096 * 2  # 512 KiB
    memory = counted["memory_bytes"]["bf16"]
    assert memory == {
        "weights": 2 * 6_738_415_616,
        "cache": 524_288_000,
        "total": 2 * 6_738_415_616 + 524_288_000,
    }
    assert accounting(shape)["context"] == 4096


def test_accounting_table_shows_every_part():
    text = printed(accounting_table(load_shape("mobilellm-125m-ls"), name="mobilellm-125m-ls", source="a paper"))
    for part in (
        "124,635,456",
        "non-embedding",
        "int4",
        "2,048",
        "30 stored (immediate ×2)",
        "a paper",
        "KiB",
    ):
        assert part in text
    assert "positions  " not in text  # groups of no weights are left out


def test_shapes_table_has_a_row_a_preset():
    text = printed(shapes_table(shape_presets().values()))
    for part in ("gpt2-xl", "1,557,611,200", "576×60", "9/3", "2501.18107"):
        assert part in text
    assert sum(" openlm " in line for line in text.splitlines()) == 98


def test_description_names_what_is_unusual():
    assert "bias all" in describe(load_shape("opt-125m"))
    assert "learned positions" in describe(load_shape("opt-125m"))
    assert "bias" not in describe(load_shape("open_lm_1b"))
