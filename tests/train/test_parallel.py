"""Whatever the layout over processes, training is that of one process."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import parallel_cases as cases
import pytest
import torch
import torch.distributed as dist

from lathe.errors import RecipeError
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.launch import launch
from lathe.train.mesh import ORDER, Mesh, count_share, open_mesh
from lathe.train.pipeline import stage_blocks
from lathe.train.tensor import check_slices

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products on two threads wait for one another more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory):
    """Give what all cases of so many processes came to; they run once."""

    @cache
    def run(nproc: int) -> dict[str, Any]:
        found = tmp_path_factory.mktemp("parallel") / f"{nproc}.pt"
        code = launch([sys.executable, str(WORKER), str(found)], nproc=nproc)
        return torch.load(found) if code == 0 else {}

    return run


@cache
def alone(shape: str, masked: bool, dtype: str, steps: int) -> dict[str, Any]:
    case = cases.Case(mesh={}, shape=shape, masked=masked, dtype=dtype, steps=steps)
    return cases.follow(cases.open_case(case), case)


ALL = [(2, name) for name in cases.TWO] + [(4, name) for name in cases.FOUR]


@pytest.mark.parametrize(("nproc", "name"), ALL)
def test_losses_and_norms_are_those_of_one_process(laid_out, nproc, name):
    case = (cases.TWO | cases.FOUR)[name]
    found, wanted = laid_out(nproc)[name], alone(*case.alone)
    torch.testing.assert_close(found["losses"], wanted["losses"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["norms"], wanted["norms"], atol=1e-5, rtol=0)
    assert min(wanted["norms"]) > 1.0  # so clipping acts
    assert found["held out"] == pytest.approx(wanted["held out"], rel=1e-5)


@pytest.mark.parametrize(("nproc", "name"), ALL)
def test_weights_come_back_whole(laid_out, nproc, name):
    case = (cases.TWO | cases.FOUR)[name]
    found, wanted = laid_out(nproc)[name]["weights"], alone(*case.alone)["weights"]
    assert found.keys() == wanted.keys()
    for weight in wanted:
        if weight.endswith(("qkv.bias", "k_norm.bias")):
            continue  # attention does not feel a key's bias: what Adam makes of its gradient is the sign of rounding
        torch.testing.assert_close(found[weight], wanted[weight], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", cases.LOW)
def test_bf16_is_the_same_but_for_rounding(laid_out, name):
    case = cases.LOW[name]
    found, wanted = laid_out(2)[f"low {name}"], alone(*case.alone)
    torch.testing.assert_close(found["losses"], wanted["losses"], atol=0.01, rtol=0)
    torch.testing.assert_close(found["norms"], wanted["norms"], atol=0.03, rtol=0)
    dtypes = {weight.dtype for weight in found["weights"].values()}
    assert dtypes == {torch.bfloat16 if case.dtype == "bf16" else torch.float32}


@pytest.mark.parametrize("axis", ["dp", "fsdp"])
def test_gradients_are_exchanged_once_a_step(laid_out, axis):
    whole, accumulated = (laid_out(2)[f"exchanges {axis} {micro_batch}"] for micro_batch in (4, 1))
    assert whole == accumulated
    assert whole == {"dp": 1, "fsdp": 1 + cases.SHAPES["plain"].n_layers}[axis]


def mesh_of(**sizes: int) -> Mesh:
    return Mesh(device=torch.device("cpu"), sizes=dict.fromkeys(ORDER, 1) | sizes, place=dict.fromkeys(ORDER, 0))


@pytest.mark.parametrize(
    ("world", "mesh", "message"),
    [
        (1, {"dp": 2}, "mesh dp=2 is for 2 processes, and there is 1; start 2"),
        (4, {"fsdp": 2, "tp": 4}, "mesh fsdp=2, tp=4 is for 8 processes, and there are 4"),
        (2, {"dp": 1}, "mesh dp=1 is for 1 process, and there are 2"),
    ],
)
def test_a_mesh_of_other_than_the_processes_there_are_is_refused(monkeypatch, world, mesh, message):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(RecipeError, match=message):
        open_mesh(Execution(out="", device="cpu", mesh=mesh))


def test_processes_that_cannot_meet_are_told_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RecipeError, match="MASTER_ADDR"):
        open_mesh(Execution(out="", device="cpu"))
    assert not dist.is_initialized()


def test_ranks_read_their_part_of_the_batch():
    place = {"pp": 1, "dp": 1, "fsdp": 2, "tp": 0}
    mesh = Mesh(device=torch.device("cpu"), sizes={"pp": 2, "dp": 2, "fsdp": 3, "tp": 2}, place=place)
    assert (mesh.world, mesh.data_world, mesh.data_rank) == (24, 6, 5)
    assert mesh.counts
    assert not mesh.is_main


@pytest.mark.parametrize(
    ("sequences", "sizes", "micro_batch", "wanted"),
    [
        (8, {}, None, (8, 8)),
        (8, {"dp": 2, "fsdp": 2}, None, (2, 2)),
        (12, {"dp": 2}, 3, (6, 3)),
        (8, {"pp": 2}, None, (8, 4)),
        (9, {"pp": 2}, None, (9, 3)),
        (3, {"pp": 3, "tp": 2}, None, (3, 1)),
    ],
)
def test_a_batch_is_shared_out(sequences, sizes, micro_batch, wanted):
    assert count_share(sequences, mesh_of(**sizes), micro_batch) == wanted


@pytest.mark.parametrize(
    ("sequences", "sizes", "micro_batch", "message"),
    [
        (9, {"dp": 2}, None, "does not split into 2 data ranks; take a batch of 8 or 10 sequences$"),
        (8, {"dp": 2}, 3, "micro-batches of 3; take a batch of 6 or 12 sequences, or micro_batch=2"),
        (1, {"fsdp": 4}, None, "take a batch of 4 sequences$"),
        (8, {"pp": 4}, 4, "4 stages needs 4 micro-batches a step or more.*make 2 of 4; take micro_batch=2 or less"),
    ],
)
def test_a_batch_that_does_not_split_is_refused_with_what_would(sequences, sizes, micro_batch, message):
    with pytest.raises(RecipeError, match=message):
        count_share(sequences, mesh_of(**sizes), micro_batch)


@pytest.mark.parametrize(
    ("change", "tp", "message"),
    [
        ({}, 4, "tp=4 does not divide n_kv_heads=2.*take tp=2"),
        ({"d_ff": 63}, 2, "tp=2 does not divide d_ff=63.*take tp=1"),
        ({"qk_norm": "full"}, 2, "norm runs over all heads at once"),
    ],
)
def test_shapes_that_cannot_be_sliced_are_refused(change, tp, message):
    with pytest.raises(RecipeError, match=message):
        check_slices(Shape.of(**cases.SIZES | {"n_layers": 2} | change), tp)


def test_stages_hold_all_blocks_in_order():
    shape = Shape.of(**cases.SIZES, n_layers=7)
    assert stage_blocks(shape, 3) == [range(3), range(3, 5), range(5, 7)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tied": True}, "tied embeddings.*tied=false"),
        ({"n_layers": 4, "sharing": "all-over", "sharing_count": 2}, "sharing='all-over'.*'immediate'"),
        ({"n_layers": 4, "sharing": "reverse", "sharing_count": 2}, "sharing='reverse'"),
        ({"n_layers": 1}, "more stages than the shape's 1 stored blocks"),
    ],
)
def test_shapes_that_cannot_be_cut_into_stages_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        stage_blocks(Shape.of(**cases.SIZES | {"n_layers": 2} | change), 2)
