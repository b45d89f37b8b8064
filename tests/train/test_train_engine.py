"""One process computes the gradients, norms and losses of the whole batch, however it is cut."""

from __future__ import annotations

import parallel_cases as cases
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lathe.errors import DeviceError, RecipeError
from lathe.model.init import build


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products on two threads wait for one another more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradients(case: cases.Case, *, step: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Give gradients and sums of a case's step."""
    engine = cases.open_case(case)
    batch = cases.draw_batch(step, masked=case.masked)
    sums = engine.accumulate(*batch, count=float((batch[1] >= 0).sum()))
    grads = {name: p.grad for name, p in engine.module.named_parameters() if p.grad is not None}
    return grads, torch.stack([sums.cross_entropy, sums.z])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", ["plain", "gpt", "visited"])
def test_gradients_are_those_of_the_mean_loss(shape, masked):
    case = cases.Case(mesh={}, shape=shape, masked=masked)
    model = build(cases.SHAPES[shape], scheme="openlm", seed=0)
    tokens_bt, targets_bt, documents_bt = cases.draw_batch(0, masked=masked)
    losses = model.loss(tokens_bt, targets_bt, documents_bt=documents_bt if masked else None, z_weight=1e-4)
    (losses.total / losses.count).backward()
    grads, sums = gradients(case)
    torch.testing.assert_close(sums, torch.stack([losses.cross_entropy, losses.z]))
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_give_the_gradients_of_the_whole(micro_batch, masked):
    whole, sums = gradients(cases.Case(mesh={}, masked=masked))
    cut, cut_sums = gradients(cases.Case(mesh={}, masked=masked, execution={"micro_batch": micro_batch}))
    torch.testing.assert_close(cut_sums, sums)
    for name, grad in whole.items():
        torch.testing.assert_close(cut[name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 2])
def test_recomputing_changes_nothing(every):
    kept, _ = gradients(cases.Case(mesh={}, shape="staged"))
    recomputed, _ = gradients(cases.Case(mesh={}, shape="staged", execution={"recompute_every": every}))
    assert all(torch.equal(kept[name], grad) for name, grad in recomputed.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at activations'
def test_compiling_blocks_changes_nothing_but_rounding(monkeypatch):
    plain = nn.Module.compile
    compiled = []

    def trace(module: nn.Module) -> None:  # without Inductor, which takes half a minute
        compiled.append(type(module).__name__)
        plain(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    eager, _ = gradients(cases.Case(mesh={}))
    traced, _ = gradients(cases.Case(mesh={}, execution={"compile": True}))
    torch.compiler.reset()
    assert compiled == ["Block", "Block"]
    for name, grad in eager.items():
        torch.testing.assert_close(traced[name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bf16", "bf16-mixed"])
def test_low_precision_stays_near(dtype):
    full, sums = gradients(cases.Case(mesh={}))
    low, low_sums = gradients(cases.Case(mesh={}, dtype=dtype))
    torch.testing.assert_close(low_sums, sums, atol=0, rtol=0.01)
    for name, grad in full.items():
        assert low[name].dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
        assert (low[name] - grad).norm() < 0.05 * grad.norm()


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_clipping_is_torchs(max_norm):
    engines = [cases.open_case(cases.Case(mesh={})) for _ in range(2)]
    for engine in engines:
        engine.accumulate(*cases.draw_batch(0, masked=False), count=100.0)
    norm = engines[0].clip(max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(engines[1].module.parameters(), max_norm))
    for one, other in zip(*(engine.module.parameters() for engine in engines), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert engines[0].clip(None) == pytest.approx(min(max_norm, float(norm)), rel=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_held_out_losses_are_those_of_every_position(masked):
    engine = cases.open_case(cases.Case(mesh={}))
    tokens_bt, targets_bt, documents_bt = cases.draw_batch(0, masked=True)
    given = documents_bt if masked else None
    losses_bt = engine.losses(tokens_bt, targets_bt, given)
    wanted = engine.module.loss(tokens_bt, targets_bt, documents_bt=given)
    assert losses_bt.shape == targets_bt.shape
    assert bool((losses_bt[targets_bt < 0] == 0).all())
    assert not losses_bt.requires_grad
    assert engine.module.training
    torch.testing.assert_close(losses_bt.sum(), wanted.cross_entropy.detach())


def test_one_process_needs_no_group():
    engine = cases.open_case(cases.Case(mesh={}))
    assert not dist.is_initialized()
    assert engine.mesh.is_main
    assert (engine.mesh.data_rank, engine.mesh.data_world) == (0, 1)
    values = torch.tensor([1.5, 2.5])
    assert engine.reduce(values) is values
    assert engine.any_rank(True)
    assert not engine.any_rank(False)
    engine.barrier()
    engine.close()


def test_whole_weights_are_copies():
    engine = cases.open_case(cases.Case(mesh={}))
    weights = engine.full_weights()
    with torch.no_grad():
        engine.module.norm.weight.zero_()
    assert bool((weights["norm.weight"] == 1).all())


def test_offloading_works_in_one_process():
    kept = cases.Case(mesh={}, steps=3)
    moved = cases.Case(mesh={}, steps=3, execution={"offload": True, "micro_batch": 4})
    engine = cases.open_case(moved)
    try:
        found = cases.follow(engine, moved)
    finally:
        engine.close()
    assert not dist.is_initialized()
    wanted = cases.follow(cases.open_case(kept), kept)
    torch.testing.assert_close(found["losses"], wanted["losses"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["norms"], wanted["norms"], atol=1e-5, rtol=0)


def test_a_part_of_the_wrong_size_is_refused():
    engine = cases.open_case(cases.Case(mesh={}))
    batch = [x[:3] for x in cases.draw_batch(0, masked=False)]
    with pytest.raises(RecipeError, match="8 sequences a data rank, and 3 were given"):
        engine.accumulate(*batch, count=1.0)


def test_a_device_there_is_not_is_refused():
    with pytest.raises(DeviceError, match="nowhere"):
        cases.open_case(cases.Case(mesh={}), device="nowhere")
