"""A process that `test_teacher` starts: distils all its cases in turn, and saves what they came to."""

import faulthandler
import sys
import warnings
from dataclasses import replace

import parallel_cases as cases
import torch
import torch.distributed as dist

from lathe.model.init import draw_weights
from lathe.recipe import Distil
from lathe.train.engine import open_engine
from lathe.train.execution import Execution

LIMIT_S = 150
TWO = {
    "dp": cases.Case(mesh={"dp": 2}, steps=8),
    "dp, accumulated": cases.Case(mesh={"dp": 2}, masked=True, steps=8, execution={"micro_batch": 1}),
    "fsdp": cases.Case(mesh={"fsdp": 2}, steps=8),
    "fsdp, accumulated": cases.Case(mesh={"fsdp": 2}, masked=True, steps=8, execution={"micro_batch": 2}),
    "fsdp, tied": cases.Case(mesh={"fsdp": 2}, shape="visited", steps=3, execution={"recompute_every": 2}),
}
LOW = {
    "dp, mixed": cases.Case(mesh={"dp": 2}, dtype="bf16-mixed", steps=3),
    "fsdp, mixed": cases.Case(mesh={"fsdp": 2}, dtype="bf16-mixed", steps=3),
    "fsdp, all bf16": cases.Case(mesh={"fsdp": 2}, dtype="bf16", steps=3),
}


def follow(case: cases.Case, teacher: str) -> dict:
    """Distil a case from a teacher's folder."""
    recipe = replace(cases.recipe_of(case), distil=Distil(teacher=teacher, weight=0.7))
    given = Execution(out="", device="cpu", mesh=case.mesh or None, **case.execution)
    engine = open_engine(recipe, given, weights=draw_weights(recipe.shape, scheme="openlm", seed=0))
    return cases.follow(engine, case)


def main() -> None:
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: follow(case, sys.argv[1]) for name, case in (TWO | LOW).items()}
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[2])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
