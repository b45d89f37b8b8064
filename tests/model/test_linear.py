"""Products by slices and by oneDNN equal torch's, forward, backward and compiled; who takes them is a fixed choice."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.model import linear
from lathe.model.linear import Linear, multiply, multiply_over_rows, name_vendor, project

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "PREFERS_ONEDNN", request.param)
    return request.param


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(3, 5, 8), (1, 7, 8), (2, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(way: bool, size: tuple[int, ...], bias: bool) -> None:
    layer = Linear(8, 12, bias=bias)
    x = draw(*size).requires_grad_()
    found, wanted = layer(x), F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    outer, leaves = draw(*found.shape, seed=1), [x, *layer.parameters()]
    grads = torch.autograd.grad((found * outer).sum(), leaves)
    exact = torch.autograd.grad((wanted * outer).sum(), leaves)
    for grad, expected in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n"), [(4, 9), (9, 4), (6, 6)])
def test_products_without_gradients(way: bool, m: int, n: int) -> None:
    y, x, weight = draw(11, m), draw(11, n, seed=1), draw(m, n, seed=2)
    torch.testing.assert_close(multiply(x, weight), x @ weight.T)
    torch.testing.assert_close(multiply(y, weight.T), y @ weight)
    torch.testing.assert_close(multiply_over_rows(y, x), y.T @ x)


def test_one_row_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SLICED_ELEMENTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight, x, bias = draw(12, 8), draw(1, 1, 8, seed=1), draw(12, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(project(x, weight, bias), F.linear(x, weight, bias))


@needs_onednn
def test_compiled_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PREFERS_ONEDNN", True)
    layer, x = Linear(8, 12, bias=False), draw(4, 8).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(
        torch.autograd.grad(compiled(x).square().sum(), [x, layer.weight]),
        torch.autograd.grad(F.linear(x, layer.weight).square().sum(), [x, layer.weight]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@needs_onednn
def test_other_dtypes_and_autocast_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PREFERS_ONEDNN", True)
    weight, x = draw(12, 8), draw(4, 8)
    assert torch.equal(project(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert project(x, weight).dtype == torch.bfloat16


def test_the_vendor_is_read_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(linear.platform, "processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert name_vendor() == "AuthenticAMD"
    monkeypatch.setattr(linear.platform, "processor", lambda: "arm")
    assert name_vendor() == "GenuineIntel"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    assert name_vendor() == "AuthenticAMD"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50\n")  # as on ARM
    assert name_vendor() == "GenuineIntel"
