"""OpenLM's checkpoints, held against a second forward pass written from open_lm's own, and files to refuse."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.errors import CheckpointError
from lathe.hub.openlm import read_openlm
from lathe.hub.openlm_settings import parse_params
from lathe.model.checkpoint import empty_model
from lathe.shape import Shape, openlm_d_ff

D, LAYERS, HEADS, VOCAB, EPS = 36, 2, 3, 23, 1e-5
NORMS = {
    "default_layer_norm": 2,
    "lp_layer_norm": 2,
    "gain_only_lp_layer_norm": 1,
    "rms_norm": 1,
    "no_wb_layer_norm": 0,
}
"""OpenLM's norms, and how many vectors each keeps."""


def planted(
    *, norm: str = "gain_only_lp_layer_norm", qk_norm: bool = False, gelu: bool = False, tied: bool = False, d: int = D,
    frequencies: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Make a state_dict as open_lm's Transformer has it, with norms that are not at their start."""
    generator = torch.Generator().manual_seed(3)
    width, d_ff = d // HEADS * HEADS, 4 * d if gelu else openlm_d_ff(d)

    def draw(*size: int, scale: float = 0.3) -> Tensor:
        return torch.randn(size, generator=generator) * scale

    def norms(name: str, size: int) -> dict[str, Tensor]:
        vectors = [("weight", 1 + draw(size)), ("bias", draw(size))]
        return {f"{name}.{kind}": vector for kind, vector in vectors[: NORMS[norm]]}

    state = {"tok_embeddings.weight": draw(VOCAB, d, scale=1.0)}
    for i in range(LAYERS):
        at = f"layers.{i}."
        state[f"{at}attention.in_proj.weight"] = draw(3 * width, d)
        state[f"{at}attention.out_proj.weight"] = draw(d, width)
        if frequencies:
            state[f"{at}attention.pos_embed.inv_freq"] = inverse_frequencies(d // HEADS)
        if qk_norm:
            state |= norms(f"{at}attention.q_norm", width) | norms(f"{at}attention.k_norm", width)
        if gelu:
            state[f"{at}_ff_w1.weight"] = state[f"{at}feed_forward.0.weight"] = draw(d_ff, d)
            state[f"{at}_ff_w2.weight"] = state[f"{at}feed_forward.2.weight"] = draw(d, d_ff, scale=0.05)
        else:
            state[f"{at}feed_forward.w12.weight"] = draw(2 * d_ff, d)
            state[f"{at}feed_forward.w3.weight"] = draw(d, d_ff, scale=0.05)
        state |= norms(f"{at}attention_norm", d) | norms(f"{at}ffn_norm", d)
    state |= norms("norm", d)
    state["output.weight"] = state["tok_embeddings.weight"] if tied else draw(VOCAB, d)
    return state


def inverse_frequencies(d_head: int) -> Tensor:
    return 1.0 / 10000.0 ** (torch.arange(0, d_head, 2).float() / d_head)


def turn_halves(x_bthe: Tensor, place: Tensor) -> Tensor:
    """Rotate by angles place ⊗ frequencies, the second half being each pair's partner."""
    angle = place[..., None] * inverse_frequencies(x_bthe.shape[-1])
    pairs = torch.complex(*x_bthe.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def turn_by_position(x_bthe: Tensor) -> Tensor:
    return turn_halves(x_bthe, torch.arange(x_bthe.shape[1]).float()[:, None])


def turn_by_head(x_bthe: Tensor) -> Tensor:
    """Do what OpenLM's first rotary embedding did: it took the heads for places."""
    return turn_halves(x_bthe, torch.arange(x_bthe.shape[2]).float())


def turn_pairs(x_bthe: Tensor) -> Tensor:
    """Rotate neighbours, as Llama's own code does."""
    angle = torch.arange(x_bthe.shape[1]).float()[:, None, None] * inverse_frequencies(x_bthe.shape[-1])
    pairs = torch.complex(x_bthe[..., ::2], x_bthe[..., 1::2]) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(pairs).flatten(3)


def reference_logits(
    state: dict[str, Tensor], ids_bt: Tensor, *, norm: str, turn: Callable[[Tensor], Tensor] = turn_by_position
) -> Tensor:
    """Compute what open_lm's Transformer computes."""

    def normalise(x: Tensor, name: str) -> Tensor:
        if norm == "rms_norm":
            return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * state[f"{name}.weight"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()
        return x * state.get(f"{name}.weight", 1) + state.get(f"{name}.bias", 0)

    x = state["tok_embeddings.weight"][ids_bt]
    t = ids_bt.shape[1]
    hidden_ts = torch.ones(t, t, dtype=torch.bool).triu(1)
    for i in range(LAYERS):
        at = f"layers.{i}."
        fused = normalise(x, f"{at}attention_norm") @ state[f"{at}attention.in_proj.weight"].T
        q, k, v = fused.chunk(3, dim=-1)
        if f"{at}attention.q_norm.weight" in state:
            q, k = normalise(q, f"{at}attention.q_norm"), normalise(k, f"{at}attention.k_norm")
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in (q, k, v))
        q, k = turn(q), turn(k)
        scores = torch.einsum("bthe,bshe->bhts", q, k) / q.shape[-1] ** 0.5
        shares = scores.masked_fill(hidden_ts, -torch.inf).softmax(-1)
        x = x + torch.einsum("bhts,bshe->bthe", shares, v).flatten(2) @ state[f"{at}attention.out_proj.weight"].T
        y = normalise(x, f"{at}ffn_norm")
        if f"{at}feed_forward.w12.weight" in state:
            gate, up = (y @ state[f"{at}feed_forward.w12.weight"].T).chunk(2, dim=-1)
            x = x + (gate * gate.sigmoid() * up) @ state[f"{at}feed_forward.w3.weight"].T
        else:
            x = x + F.gelu(y @ state[f"{at}feed_forward.0.weight"].T) @ state[f"{at}feed_forward.2.weight"].T
    return normalise(x, "norm") @ state["output.weight"].T


def logits_of(shape: Shape, weights: dict[str, Tensor], ids_bt: Tensor) -> Tensor:
    model = empty_model(shape)
    model.load_state_dict(weights, assign=True)
    with torch.inference_mode():
        return model.eval()(ids_bt)


def save(folder: Path, state: dict[str, Any], **settings: Any) -> Path:
    """Write a run's folder as OpenLM leaves it; settings go into params.txt."""
    path = folder / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"epoch": 1, "name": "a run", "state_dict": state, "evaluation_loss": -1}, path)
    if settings:
        lines = [f"{name}: {value}\n" for name, value in settings.items()]
        (folder / "params.txt").write_text("".join(lines), encoding="utf-8")
    return path


IDS = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))


class TestLogits:
    @pytest.mark.parametrize("norm", list(NORMS))
    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_norms(self, tmp_path: Path, norm: str, qk_norm: bool) -> None:
        if norm == "no_wb_layer_norm" and qk_norm:
            pytest.skip("its reference would need the setting, not the state")
        state = planted(norm=norm, qk_norm=qk_norm)
        shape, weights = read_openlm(save(tmp_path, state, model_norm=norm, qk_norm=qk_norm))
        assert shape.qk_norm == ("full" if qk_norm else "none")
        assert torch.allclose(logits_of(shape, weights, IDS), reference_logits(state, IDS, norm=norm), atol=1e-5)

    def test_gelu_and_tied(self, tmp_path: Path) -> None:
        state = planted(norm="default_layer_norm", gelu=True, tied=True)
        shape, weights = read_openlm(save(tmp_path, state))
        assert (shape.mlp, shape.tied, shape.d_ff, shape.norm) == ("gelu", True, 4 * D, "layernorm")
        ours, theirs = logits_of(shape, weights, IDS), reference_logits(state, IDS, norm="default_layer_norm")
        assert torch.allclose(ours, theirs, atol=1e-5)

    def test_width_that_heads_do_not_divide(self, tmp_path: Path) -> None:
        """OpenLM rounds d_head down: aphid_neox has 488 and 12 heads of 40."""
        state = planted(norm="default_layer_norm", d=38)
        shape, weights = read_openlm(save(tmp_path, state))
        assert (shape.d_model, shape.n_heads, shape.d_head) == (38, 3, 12)
        ours, theirs = logits_of(shape, weights, IDS), reference_logits(state, IDS, norm="default_layer_norm")
        assert torch.allclose(ours, theirs, atol=1e-5)

    @pytest.mark.parametrize(
        ("kind", "turn", "position"),
        [("rotary", turn_by_position, "rotary"), ("head_rotary", turn_by_head, "none"), ("none", lambda x: x, "none")],
    )
    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_positions(
        self, tmp_path: Path, kind: str, turn: Callable[[Tensor], Tensor], position: str, qk_norm: bool
    ) -> None:
        state = planted(norm="default_layer_norm", qk_norm=qk_norm, frequencies=kind != "none")
        path = save(tmp_path, state, positional_embedding_type=kind)
        (tmp_path / "small.json").write_text(json.dumps({"hidden_dim": D, "n_heads": HEADS}), encoding="utf-8")
        shape, weights = read_openlm(path)
        assert shape.position == position
        theirs = reference_logits(state, IDS, norm="default_layer_norm", turn=turn)
        assert torch.allclose(logits_of(shape, weights, IDS), theirs, atol=1e-5)

    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_neighbouring_pairs(self, tmp_path: Path, qk_norm: bool) -> None:
        state = planted(norm="default_layer_norm", qk_norm=qk_norm, frequencies=False)
        path = save(tmp_path, state, positional_embedding_type="llama_rotary")
        (tmp_path / "small.json").write_text(json.dumps({"hidden_dim": D, "n_heads": HEADS}), encoding="utf-8")
        shape, weights = read_openlm(path)
        theirs = reference_logits(state, IDS, norm="default_layer_norm", turn=turn_pairs)
        assert torch.allclose(logits_of(shape, weights, IDS), theirs, atol=1e-5)


class TestShape:
    def test_from_tensors_alone(self, tmp_path: Path) -> None:
        shape, _ = read_openlm(save(tmp_path, planted(norm="default_layer_norm", qk_norm=True)))
        d_ff = openlm_d_ff(D)
        assert shape == Shape(
            d_model=D, n_layers=LAYERS, n_heads=HEADS, n_kv_heads=HEADS, d_head=12, d_ff=d_ff, vocab_size=VOCAB,
            norm="layernorm", qk_norm="full",
        )  # fmt: skip

    def test_norm_of_gains_only_must_be_said(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted())
        with pytest.raises(CheckpointError, match=r"do not say norm \(gains without biases .*params.txt"):
            read_openlm(path)
        (path.parent / "small.json").write_text(
            json.dumps({"hidden_dim": D, "model_norm": "rms_norm"}), encoding="utf-8"
        )
        shape, weights = read_openlm(path)
        assert shape.norm == "rmsnorm"
        given = dataclasses.replace(shape, norm="layernorm-gain", max_seq_len=77)
        again, same = read_openlm(path, shape=given)
        assert again == given
        assert all(torch.equal(w, same[name]) for name, w in weights.items())

    def test_heads_must_be_said_without_frequencies(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted(norm="default_layer_norm", frequencies=False))
        with pytest.raises(CheckpointError, match="the tensors do not say n_heads; put"):
            read_openlm(path)
        save(tmp_path, planted(norm="default_layer_norm", frequencies=False), model="llama-2-7b", seq_len=64)
        (tmp_path / "llama-2-7b.json").write_text(json.dumps({"hidden_dim": D, "n_heads": 6}), encoding="utf-8")
        (tmp_path / "other.json").write_text(json.dumps({"hidden_dim": 8, "n_heads": 2}), encoding="utf-8")
        shape, _ = read_openlm(path)
        assert (shape.n_heads, shape.d_head, shape.max_seq_len) == (6, 6, 64)

    def test_heads_of_a_model_that_has_a_preset(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted(norm="default_layer_norm", frequencies=False), model="open_lm_3b")
        with pytest.raises(CheckpointError, match="rotary positions turn pairs"):  # 32 heads of 1
            read_openlm(path)

    def test_disagreements(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted(norm="default_layer_norm"))
        good, _ = read_openlm(path)
        bad = dataclasses.replace(good, d_ff=8, n_layers=4, n_heads=6, n_kv_heads=6, d_head=12)
        with pytest.raises(
            CheckpointError, match=r"n_layers=4, but the tensors say 2; d_ff=8, but .*n_heads=6, .* = 72"
        ):
            read_openlm(path, shape=bad)
        with pytest.raises(CheckpointError, match="frequencies are not those of theta=500000"):
            read_openlm(path, shape=dataclasses.replace(good, rotary_theta=5e5))
        with pytest.raises(CheckpointError, match=r"weights and shape disagree: .*qkv.weight is 108×36"):
            read_openlm(path, shape=dataclasses.replace(good, n_kv_heads=1))
        save(tmp_path, planted(), model_norm="default_layer_norm", vocab_size=24)
        with pytest.raises(
            CheckpointError, match=r"params.txt says: vocab_size=24, .* 23; norm=layernorm, .* no biases"
        ):
            read_openlm(path)

    def test_equal_head_counts_as_tied_unless_said(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted(norm="default_layer_norm", tied=True))
        shape, weights = read_openlm(path)
        assert shape.tied
        assert "head.weight" not in weights
        kept, weights = read_openlm(path, shape=dataclasses.replace(shape, tied=False))
        assert torch.equal(weights["head.weight"], weights["embedding.weight"])
        assert not kept.tied


class TestFiles:
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
    def test_wrapped_names(self, tmp_path: Path, prefix: str) -> None:
        state = {f"{prefix}{name}": w for name, w in planted(norm="default_layer_norm").items()}
        state = {name.replace("layers.1.", "layers.1._orig_mod."): w for name, w in state.items()}
        assert read_openlm(save(tmp_path, state))[0].n_layers == LAYERS

    @pytest.mark.parametrize("legacy", [False, True])
    def test_bare_and_old_files(self, tmp_path: Path, legacy: bool) -> None:
        state = planted(norm="default_layer_norm")
        torch.save(state, tmp_path / "bare.pt", _use_new_zipfile_serialization=not legacy)
        _, weights = read_openlm(tmp_path / "bare.pt")
        assert torch.equal(weights["head.weight"], state["output.weight"])

    def test_dtype_stays(self, tmp_path: Path) -> None:
        state = {name: w.bfloat16() for name, w in planted(norm="default_layer_norm").items()}
        _, weights = read_openlm(save(tmp_path, state))
        assert {w.dtype for w in weights.values()} == {torch.bfloat16}

    def test_losses_may_be_numpy_scalars(self, tmp_path: Path) -> None:
        content = {
            "epoch": 1,
            "state_dict": planted(norm="default_layer_norm"),
            "evaluation_metrics": [np.float64(2.5)],
        }
        torch.save(content, tmp_path / "epoch_1.pt")
        assert read_openlm(tmp_path / "epoch_1.pt")[0].d_model == D

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "sprung",)

        for name, protocol in (("new.pt", 2), ("newer.pt", 4)):
            torch.save({"state_dict": planted(), "more": Trap()}, tmp_path / name, pickle_protocol=protocol)
            with pytest.raises(CheckpointError, match=r"was not loaded: it holds more .*would run code"):
                read_openlm(tmp_path / name)
        (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
        with pytest.raises(CheckpointError, match=r"was not loaded|no whole PyTorch file"):
            read_openlm(tmp_path / "plain.pt")
        assert not (tmp_path / "sprung").exists()

    def test_what_code_a_file_asks_for_is_named_and_no_way_to_run_it(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, ("",)

        torch.save({"state_dict": planted(), "more": Trap()}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=r"would run code \((posix|nt)\.system\)") as caught:
            read_openlm(tmp_path / "x.pt")
        assert "weights_only" not in str(caught.value)

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted())
        whole = path.read_bytes()
        for content in (b"", b"\x80", whole[:-100], whole[: len(whole) // 2], b"PK\x03\x04" + b"\0" * 50):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="no whole PyTorch file"):
                read_openlm(path)
        with pytest.raises(CheckpointError, match="there is no file"):
            read_openlm(tmp_path / "none.pt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "holds a list, and no model's state_dict"),
            ({"epoch": 3, "optimizer": {"a": 1}}, "holds epoch, optimizer, and no model's"),
            ({"state_dict": {}}, "holds state_dict, and no model's"),
            ({"a": torch.ones(2)}, "is no OpenLM model: it has no matrix tok_embeddings.weight"),
            ({"tok_embeddings.weight": torch.ones(2)}, "no matrix tok_embeddings.weight"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: Any, message: str) -> None:
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=message):
            read_openlm(tmp_path / "x.pt")

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ("post_embed_norm.weight", "normalises the embedding"),
            ("layers.0.feed_forward.gate_proj.weight", "GeGLU"),
            ("layers.1.feed_forward.experts.mlp.w1", "mixture of experts"),
            ("layers.0.attention.extra.weight", "layers.0.attention.extra.weight is in no such decoder"),
            ("layers.7.ffn_norm.weight", "blocks.2.attention_norm.weight is missing"),
        ],
    )
    def test_tensors_of_other_models(self, tmp_path: Path, extra: str, message: str) -> None:
        state = planted(norm="default_layer_norm") | {extra: torch.ones(D)}
        with pytest.raises(CheckpointError, match=message):
            read_openlm(save(tmp_path, state))

    @pytest.mark.parametrize("name", ["layers.1.attention.in_proj.weight", "layers.1.feed_forward.w12.weight"])
    def test_a_fused_matrix_cut_short(self, tmp_path: Path, name: str) -> None:
        state = planted(norm="default_layer_norm")
        state[name] = state[name][:-1]
        with pytest.raises(CheckpointError, match=rf"{name} has \d+ rows, and layer 0's has not"):
            read_openlm(save(tmp_path, state))

    def test_missing_feed_forward(self, tmp_path: Path) -> None:
        state = {n: w for n, w in planted().items() if "w12" not in n}
        with pytest.raises(CheckpointError, match=r"neither feed_forward.w12.weight nor"):
            read_openlm(save(tmp_path, state))


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("post_embed_norm", True, "params.txt: post_embed_norm: True: it normalises the embedding"),
            ("moe_freq", 2, "mixture of experts"),
            ("attn_name", "custom_attn", "not softmax"),
            ("ffn_type", "gemma_geglu", "ffn_type: gemma_geglu is none that Lathe has"),
            ("model_norm", "rms_nrm", "did you mean 'rms_norm'"),
        ],
    )
    def test_refused(self, tmp_path: Path, name: str, value: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_openlm(save(tmp_path, planted(norm="default_layer_norm"), **{name: value}))

    def test_two_configurations(self, tmp_path: Path) -> None:
        path = save(tmp_path, planted())
        for name in ("a", "b"):
            (path.parent / f"{name}.json").write_text('{"hidden_dim": 36}', encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"a.json, .*b.json are all model configurations"):
            read_openlm(path)

    def test_lines(self) -> None:
        found = parse_params("lr: 0.001\nmodel: a: b\nqk_norm: True\nresume: None\nseq_len: 2048\nbroken\n")
        assert found == {"lr": "0.001", "model": "a: b", "qk_norm": True, "seq_len": 2048}
