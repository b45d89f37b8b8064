"""Weight-only int8 and int4: how far the answers move, what keeps its dtype, and what is refused.

Axes in names: b batch, t time, v vocabulary.
"""

import dataclasses
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lathe.errors import DeviceError, LatheError, MissingExtraError, ShapeError, WorkloadError
from lathe.model import compiled
from lathe.model.checkpoint import load_model, save_checkpoint
from lathe.model.decoder import Decoder
from lathe.model.engine import open_engine
from lathe.model.generate import generate
from lathe.model.init import build
from lathe.model.linear import PLAIN, SLICED_ELEMENTS
from lathe.model.quantise import GROUP, QUANTISED, WIDE, quantise
from lathe.shape import Shape
from lathe.workload import Workload

pytest.importorskip("torchao", reason="needs the extra quant")

SMALL = Shape.of(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=96, vocab_size=48)
TIED = dataclasses.replace(SMALL, tied=True, bias="all", n_layers=4, sharing="immediate", sharing_count=2)
PROMPTS = [[1, 2, 3, 4, 5], [7, 8]]
pytestmark = pytest.mark.usefixtures("one_thread")


def make(shape: Shape = SMALL, dtype: str = "bf16") -> Decoder:
    return build(shape, scheme="llama", seed=0, dtype=dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", QUANTISED)
def test_every_weight_is_rounded_by_half_a_step_at_most(dtype: str) -> None:
    """A step is the largest weight of a row / 127.5, or the range of a group of inputs / 15."""
    model = make()
    down: Any = model.blocks[0].mlp.down  # pyright: ignore[reportAttributeAccessIssue]
    weight_oi = down.weight.float()
    quantise(model, dtype)
    with torch.inference_mode():
        rounded_oi = down(torch.eye(96).bfloat16()).float().T
    groups = weight_oi.view(64, -1, GROUP)
    int8_step, int4_step = weight_oi.abs().amax(1)[:, None, None] / 127.5, (groups.amax(2) - groups.amin(2)) / 15
    step = int8_step if dtype == "int8" else int4_step[:, :, None]
    # bf16 rounds scales, zeros and the product besides: 1/256 of a value each.
    allowed = step * 0.5 + weight_oi.abs().max() / 128
    error = (rounded_oi - weight_oi).view_as(groups).abs()
    assert (error <= allowed).all()
    assert float((error / step).mean()) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("dtype", QUANTISED)
def test_one_row_on_two_threads_is_not_cut_in_slices(dtype: str) -> None:
    torch.set_num_threads(2)
    wide = dataclasses.replace(SMALL, d_ff=SLICED_ELEMENTS // 64)
    model = quantise(make(wide), dtype)
    x_1i = torch.randn(1, 64).bfloat16()
    with torch.inference_mode():
        one, among_others = model.blocks[0].mlp.up(x_1i), model.blocks[0].mlp.up(x_1i.expand(3, -1))  # pyright: ignore
    torch.testing.assert_close(among_others[:1], one, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shape", [SMALL, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.001), ("int4", 0.05)])
def test_logits_move_little_and_the_rest_keeps_its_dtype(shape: Shape, dtype: str, most: float) -> None:
    tokens_bt = torch.randint(48, (3, 20), generator=torch.Generator().manual_seed(0))
    plain_btv = make(shape, "fp32")(tokens_bt).log_softmax(-1)
    model = make(shape)
    assert quantise(model, dtype) is model
    quantised_btv = model(tokens_bt).float().log_softmax(-1)
    divergence = (plain_btv.exp() * (plain_btv - quantised_btv)).sum(-1).mean()
    assert 0 < float(divergence) < most
    kinds = {name: type(weight) in PLAIN for name, weight in model.state_dict().items()}
    plain = {name for name, is_plain in kinds.items() if is_plain}
    assert plain == {n for n in kinds if "embedding" in n or "norm" in n or n.endswith("bias")}
    assert model.embedding.weight.dtype is torch.bfloat16
    assert ("head.weight" in kinds) is not shape.tied


@pytest.mark.parametrize("dtype", QUANTISED)
def test_cached_decoding_of_prompts_of_different_length(dtype: str) -> None:
    model = quantise(make(), dtype)
    found = generate(model, PROMPTS, max_new_tokens=6)
    for prompt, new in zip(PROMPTS, found, strict=True):
        with torch.inference_mode():
            logits_tv = model(torch.tensor([prompt + new]))[0].float()
        chosen = logits_tv[len(prompt) - 1 : -1].gather(1, torch.tensor(new)[:, None])[:, 0]
        # Products of other sizes round differently in bf16: what was chosen need only be as good as the best.
        assert float((logits_tv[len(prompt) - 1 : -1].amax(1) - chosen).max()) < 0.05


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_the_compiled_step_takes_int4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATHE_CACHE", str(tmp_path))
    model = quantise(make(dataclasses.replace(SMALL, n_layers=1, d_ff=128, vocab_size=64)), "int4")
    eager, fast = (open_engine(model, batch=1, slots=8, engine=engine) for engine in ("eager", "compile"))
    torch.testing.assert_close(fast.read(PROMPTS[:1]), eager.read(PROMPTS[:1]))
    tokens_b = torch.tensor([3])
    torch.testing.assert_close(fast.step(tokens_b), eager.step(tokens_b), rtol=0.02, atol=0.02)


def test_int4_that_the_compiler_cannot_multiply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATHE_CACHE", str(tmp_path))
    with pytest.raises(WorkloadError, match=r"no product for these weights here: .*; use engine 'eager'"):
        open_engine(quantise(make(), "int4"), batch=1, slots=8, engine="compile")
    assert not list(tmp_path.rglob("*.pt2"))


def test_compiled_steps_of_quantised_weights_have_names_of_their_own() -> None:
    def name(dtype: str, *, changed: bool = False) -> str:
        model = make()
        if changed:
            model.blocks[1].mlp.up.weight[0, 0] += 1  # pyright: ignore
        model = quantise(model, dtype)
        return compiled._name(model, open_engine(model, batch=1, slots=8).cache)

    assert name("int8") == name("int8")
    assert len({name("int8"), name("int4"), name("int8", changed=True), name("int4", changed=True)}) == 4


@pytest.mark.parametrize("dtype", QUANTISED)
def test_a_checkpoint_is_loaded_in_bf16_and_quantised(dtype: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SMALL, make(dtype="fp32").state_dict())
    model, same = load_model(tmp_path, dtype=dtype), quantise(make(), dtype)
    tokens_bt = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens_bt), same(tokens_bt))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert Workload(dtype=dtype).activation_dtype == WIDE


@pytest.mark.parametrize(
    ("changes", "wide", "dtype", "error", "message"),
    [
        ({}, "bf16", "int5", DeviceError, "quantised to 'int5'; did you mean"),
        ({}, "fp32", "int4", DeviceError, r"made from bf16, and blocks\.0\.attention\.qkv is torch\.float32"),
        ({"d_ff": 80}, "bf16", "int4", ShapeError, r"groups of 32 inputs, and blocks\.0\.mlp\.down has 80"),
        ({"vocab_size": 50}, "bf16", "int4", ShapeError, "a multiple of 16 outputs, and head has 50"),
    ],
)
def test_what_cannot_be_quantised_stays_as_it_was(
    changes: dict[str, int], wide: str, dtype: str, error: type[LatheError], message: str
) -> None:
    model = make(dataclasses.replace(SMALL, **changes), wide)
    with pytest.raises(error, match=message):
        quantise(model, dtype)
    assert all(type(weight) in PLAIN for weight in model.state_dict().values())


def test_int8_takes_any_width_and_dtype() -> None:
    shape = dataclasses.replace(SMALL, d_ff=171, vocab_size=49)
    for wide in ("fp32", "fp16"):
        assert quantise(make(shape, wide), "int8")(torch.tensor([[1, 2]])).isfinite().all()


def test_twice_is_refused() -> None:
    model = quantise(make(), "int8")
    with pytest.raises(DeviceError, match=r"blocks\.0\.attention\.qkv is a Int8Tensor already"):
        quantise(model, "int4")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="int8 weights do not run on meta; they do on cpu and cuda"):
        quantise(make(), "int8", device="meta")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    with pytest.raises(DeviceError, match="Old Card lacks the bf16 tensor cores"):
        quantise(make(), "int4", device="cuda")


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtraError, match=r'int8 weights needs .* pip install "lathe\[quant\]"'):
        quantise(make(), "int8")


def test_importing_torchao_says_nothing() -> None:
    code = (
        "from lathe.model.init import build; from lathe.model.quantise import quantise; from lathe.shape import Shape\n"
        "shape = Shape.of(d_model=32, n_layers=1, n_heads=1, d_ff=32, vocab_size=16)\n"
        "for dtype in ('int8', 'int4'): quantise(build(shape, scheme='llama', seed=0, dtype='bf16'), dtype)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not logging.getLogger("torchao").filters
