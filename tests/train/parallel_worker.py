"""A process that `test_parallel` starts: trains all cases of its number of processes in turn, and saves the results."""

import faulthandler
import sys
import warnings

import parallel_cases as cases
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

LIMIT_S = 150


class Exchanges(TorchDispatchMode):
    """Count the collectives that sum."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("reduce_scatter", "allreduce"))
        return func(*args, **(kwargs or {}))


def count_exchanges(case: cases.Case) -> int:
    """Count the exchanges of gradients in a step."""
    engine, exchanges = cases.open_case(case), 0
    wrapped = engine.layout.wrapped

    def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal exchanges
        exchanges += 1
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    mesh = engine.mesh
    batch = cases.draw_batch(0, masked=False, rank=mesh.data_rank, world=mesh.data_world)
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(None, count)
        engine.accumulate(*batch, count=1.0)
        return exchanges
    with Exchanges() as seen:
        engine.accumulate(*batch, count=1.0)
    return seen.count


def main() -> None:
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wanted = {2: cases.TWO, 4: cases.FOUR}[dist.get_world_size()]
    found = {name: cases.follow(cases.open_case(case), case) for name, case in wanted.items()}
    if dist.get_world_size() == 2:
        found |= {f"low {name}": cases.follow(cases.open_case(case), case) for name, case in cases.LOW.items()}
        for axis in ("dp", "fsdp"):
            for micro_batch in (4, 1):
                case = cases.Case(mesh={axis: 2}, execution={"micro_batch": micro_batch})
                found[f"exchanges {axis} {micro_batch}"] = count_exchanges(case)
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    dist.barrier()
    dist.destroy_process_group()


main()
