import pytest
import torch
from torch.nn import functional as F

from lathe.model import attention
from lathe.model.attention import attend


def make(b: int, h: int, g: int, t: int, s: int, e: int, *, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (b, h, t, e), (b, g, s, e), (b, g, s, e)
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize(("h", "g"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("t", [2, 31, 32, 33, 100])
@pytest.mark.parametrize("kind", ["causal", "one mask", "a mask each"])
@torch.no_grad()
def test_narrow_heads_attend_as_others_do(monkeypatch: pytest.MonkeyPatch, h: int, g: int, t: int, kind: str) -> None:
    monkeypatch.setattr(attention, "BLOCK_SCORES", 5000)  # several rows, and one at a time
    s = t if kind == "causal" else t + 7
    q, k, v = make(3, h, g, t, s, 8)
    mask = None
    if kind != "causal":
        mask = torch.rand(3 if kind == "a mask each" else 1, 1, t, s, generator=torch.Generator().manual_seed(1)) < 0.5
        mask[..., 0] = True
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=h != g)
    torch.testing.assert_close(attend(q, k, v, mask), wanted, atol=1e-5, rtol=1e-5)


def test_only_plain_fp32_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("spelled out")

    monkeypatch.setattr(attention, "_attend_narrow", refuse)
    narrow, wide = make(1, 2, 2, 5, 5, 8), make(1, 2, 2, 5, 5, 32)
    attend(*narrow, None)  # gradients are on
    with torch.no_grad():
        attend(*wide, None)
        attend(*make(1, 2, 2, 5, 5, 8, dtype=torch.bfloat16), None)
        with pytest.raises(AssertionError, match="spelled out"):
            attend(*narrow, None)
