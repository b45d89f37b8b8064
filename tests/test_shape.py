"""Known answers, properties and bad inputs of Shape and its arithmetic."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import shape as arithmetic
from lathe.errors import ShapeError
from lathe.presets.shapes import load_shape, shape_names
from lathe.shape import Shape, openlm_d_ff

SMALL = {"d_model": 64, "n_layers": 4, "n_heads": 8, "vocab_size": 512}

# Published totals of models that are no presets, with their configurations.
OTHERS = [
    # Llama of karpathy/tinyllamas, trained on TinyStories
    (260_032, {**SMALL, "n_layers": 5, "n_kv_heads": 4, "d_ff": 172, "tied": True}),
    # huggingface.co HuggingFaceTB/SmolLM-135M
    (
        134_515_008,
        {"d_model": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "vocab_size": 49152, "tied": True},
    ),
    # huggingface.co Qwen/Qwen2-0.5B: biases on queries, keys and values alone
    (
        494_032_768,
        {
            "d_model": 896,
            "n_layers": 24,
            "n_heads": 14,
            "n_kv_heads": 2,
            "d_ff": 4864,
            "vocab_size": 151936,
            "tied": True,
            "bias": "qkv",
        },
    ),
    # huggingface.co Qwen/Qwen3-0.6B: heads wider than d_model / n_heads, a norm over each query and key head
    (
        596_049_920,
        {
            "d_model": 1024,
            "n_layers": 28,
            "n_heads": 16,
            "n_kv_heads": 8,
            "d_head": 128,
            "d_ff": 3072,
            "vocab_size": 151936,
            "tied": True,
            "qk_norm": "head",
        },
    ),
]


@pytest.mark.parametrize(("params", "given"), OTHERS)
def test_params_of_known_models(params, given):
    assert Shape.of(**given).params == params


@pytest.mark.parametrize(
    ("name", "count"),
    [  # the "non-embedding params" of Biderman et al. 2023, table 1, and of the suite's model cards
        ("pythia-14m", 1_189_888),
        ("pythia-31m", 4_739_072),
        ("pythia-70m", 18_915_328),
        ("pythia-160m", 85_056_000),
        ("pythia-410m", 302_311_424),
        ("pythia-1b", 805_736_448),
        ("pythia-1.4b", 1_208_602_624),
        ("pythia-2.8b", 2_517_652_480),
        ("pythia-6.9b", 6_444_163_072),
        ("pythia-12b", 11_327_027_200),
    ],
)
def test_non_embedding_params_are_pythias(name, count):
    assert load_shape(name).non_embedding_params == count


def test_groups_by_hand():
    shape = Shape.of(**SMALL, n_kv_heads=2, d_ff=100, norm="layernorm", mlp="relu", position="learned",
                     max_seq_len=10, position_offset=2, bias="all", qk_norm="full")  # fmt: skip
    assert shape.param_groups == {
        "embedding": 512 * 64,
        "positions": 12 * 64,
        "attention": 4 * (64 * 64 + 2 * 64 * 16 + 64 * 64 + (64 + 16 + 16) + 64),
        "mlp": 4 * (64 * 100 + 100 + 100 * 64 + 64),
        "norms": 9 * 128 + 4 * 2 * (64 + 16),
        "head": 512 * 64,
    }


def test_flops_by_hand():
    shape = Shape.of(d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, d_head=2, d_ff=8, vocab_size=10)
    weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8
    assert shape.forward_flops(5) == 2 * (2 * weights + 4 * 2 * 2 * 5) + 2 * 10 * 4
    assert shape.prefill_flops(1) == shape.forward_flops(1)
    assert shape.train_flops(30, 10) == 3 * 30 * shape.forward_flops(5.5)
    assert shape.weight_bytes("int4") == shape.params / 2
    assert shape.kv_bytes(3, 7, "bf16") == 2 * 2 * 1 * 2 * 3 * 7 * 2


def test_flops_near_six_nd_where_attention_is_small():
    shape = load_shape("llama-2-7b")
    assert shape.train_flops(1e9, 1) / (6 * shape.params * 1e9) == pytest.approx(1, abs=0.02)


def test_prefill_is_the_sum_of_its_tokens():
    shape = Shape.of(**SMALL)
    one_by_one = sum(shape.forward_flops(context) for context in range(1, 33))
    assert arithmetic.count_prefill_flops(shape, 32, all_logits=True) == pytest.approx(one_by_one)


@pytest.mark.parametrize("name", ["mobilellm-125m", "mobilellm-350m"])
def test_sharing_keeps_weights_and_doubles_work(name):
    base, shared = load_shape(name), load_shape(f"{name}-ls")
    assert shared.params == base.params
    assert shared.stored_layers == base.n_layers
    assert shared.n_layers == 2 * base.n_layers
    assert shared.kv_bytes(1, 100, "fp16") == 2 * base.kv_bytes(1, 100, "fp16")
    head = 2 * base.vocab_size * base.d_model
    assert shared.forward_flops(100) - head == 2 * (base.forward_flops(100) - head)


@pytest.mark.parametrize(
    ("pattern", "count", "visits"),
    [
        ("immediate", 2, (0, 0, 1, 1, 2, 2)),
        ("all-over", 2, (0, 1, 2, 0, 1, 2)),
        ("reverse", 2, (0, 1, 2, 2, 1, 0)),
        ("reverse", 3, (0, 1, 1, 0, 0, 1)),
    ],
)
def test_visits(pattern, count, visits):
    shape = Shape.of(**{**SMALL, "n_layers": 6}, sharing=pattern, sharing_count=count)
    assert shape.visits == visits
    assert Shape.of(**SMALL).visits == (0, 1, 2, 3)


@pytest.mark.parametrize(("d_model", "d_ff"), [(96, 256), (384, 1024), (488, 1536), (2048, 5632), (3072, 8192)])
def test_openlm_width(d_model, d_ff):
    assert openlm_d_ff(d_model) == d_ff
    assert openlm_d_ff(np.array([d_model]))[0] == d_ff


def test_columns_count_as_shapes_do():
    shapes = [s for s in map(load_shape, shape_names()) if (s.norm, s.mlp, s.qk_norm) == ("rmsnorm", "swiglu", "none")]
    numbers = [f for f in Shape.__dataclass_fields__ if isinstance(getattr(shapes[0], f), int)]
    columns = SimpleNamespace(norm="rmsnorm", mlp="swiglu", qk_norm="none", bias="none", position="rotary")
    for field in numbers:
        setattr(columns, field, np.array([getattr(s, field) for s in shapes]))
    assert len({s.sharing_count for s in shapes}) == len({s.tied for s in shapes}) == 2
    same = np.testing.assert_array_equal
    same(arithmetic.count_params(columns), [s.params for s in shapes])
    same(arithmetic.count_non_embedding_params(columns), [s.non_embedding_params for s in shapes])
    same(arithmetic.count_forward_flops(columns, 300), [s.forward_flops(300) for s in shapes])
    same(arithmetic.count_prefill_flops(columns, 128), [s.prefill_flops(128) for s in shapes])
    same(arithmetic.count_train_flops(columns, 10**13, 2048), [s.train_flops(10**13, 2048) for s in shapes])
    same(arithmetic.count_weight_bytes(columns, "int4"), [s.weight_bytes("int4") for s in shapes])
    same(arithmetic.count_kv_bytes(columns, 4, 384, "bf16"), [s.kv_bytes(4, 384, "bf16") for s in shapes])


counts = st.integers(1, 64)


@settings(deadline=None, max_examples=50)
@given(kv=counts, group=st.integers(1, 8), d_head=counts, d_model=counts, layers=counts, tied=st.booleans())
def test_groups_sum_and_nothing_shrinks_with_depth(kv, group, d_head, d_model, layers, tied):
    def at(n_layers):
        heads = {"n_heads": kv * group, "n_kv_heads": kv, "d_head": 2 * d_head}
        return Shape.of(d_model=d_model, n_layers=n_layers, vocab_size=100, tied=tied, **heads)

    shape, deeper = at(layers), at(layers + 1)
    assert sum(shape.param_groups.values()) == shape.params
    assert deeper.params > shape.params
    assert deeper.forward_flops(9) > shape.forward_flops(9)
    assert deeper.kv_bytes(1, 9, "fp16") > shape.kv_bytes(1, 9, "fp16")


def test_numpy_integers_become_pythons():
    shape = Shape.of(**{k: np.int64(v) for k, v in SMALL.items()})
    assert shape == Shape.of(**SMALL)
    assert type(shape.d_model) is int
    assert hash(shape) == hash(Shape.of(**SMALL))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_kv_heads": 3}, r"try n_kv_heads in \[1, 2, 4, 8\]"),
        ({"d_model": 0}, "d_model=0 should be a whole number of at least 1"),
        ({"d_model": -64}, "d_model=-64"),
        ({"d_model": 64.0}, r"d_model=64\.0 should be a whole number"),
        ({"d_model": "64"}, "d_model='64'"),
        ({"n_layers": True}, "n_layers=True"),
        ({"d_head": 7}, "even"),
        ({"rotary_fraction": 0.1}, "even"),
        ({"rotary_fraction": 1.5}, "at most 1"),
        ({"norm_eps": float("nan")}, "norm_eps=nan should be a positive, finite number"),
        ({"rotary_theta": float("inf")}, "finite"),
        ({"tied": 1}, "tied=1 should be true or false"),
        ({"mlp": "swiglue"}, "did you mean 'swiglu'"),
        ({"norm": ["rmsnorm"]}, "norm="),
        ({"sharing": "immediate"}, "sharing_count of at least 2"),
        ({"sharing_count": 2}, "needs a sharing pattern"),
        ({"sharing": "reverse", "sharing_count": 3}, "try n_layers=3 or 6"),
        ({"position_offset": 2}, "position='learned'"),
        ({"n_head": 8}, "did you mean 'n_heads'"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_wrong_shapes_are_refused(change, says):
    with pytest.raises(ShapeError, match=says):
        Shape.of(**{**SMALL, **change})


def test_unknown_dtype_is_refused():
    with pytest.raises(ShapeError, match="did you mean 'fp16' or 'bf16'"):
        Shape.of(**SMALL).weight_bytes("bfp16")
