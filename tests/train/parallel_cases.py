"""What `test_parallel` trains, alone and laid out over processes: tiny decoders on random tokens, 20 AdamW steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lathe.model.init import draw_weights
from lathe.recipe import Data, Recipe
from lathe.shape import Shape
from lathe.train.engine import Engine, open_engine
from lathe.train.execution import Execution

ROWS, TIME, VOCAB = 8, 16, 97
SIZES = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64, "vocab_size": VOCAB}
SHAPES = {
    "plain": Shape.of(**SIZES, n_layers=2),
    "heads": Shape.of(**SIZES, n_layers=2, qk_norm="head"),
    "gpt": Shape.of(
        **SIZES, n_layers=2, norm="layernorm", bias="all", qk_norm="head", position="learned", mlp="gelu",
        max_seq_len=TIME, tied=True,
    ),
    "visited": Shape.of(**SIZES, n_layers=4, sharing="reverse", sharing_count=2, tied=True),
    "staged": Shape.of(
        **SIZES, n_layers=6, norm="layernorm-gain", bias="all", position="learned", mlp="gelu", max_seq_len=TIME,
        qk_norm="head", sharing="immediate", sharing_count=2,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """Say what is trained, and how it is laid out; `masked` cuts documents apart and has no targets across them."""

    mesh: dict[str, int]
    shape: str = "plain"
    masked: bool = False
    dtype: str = "fp32"
    steps: int = 20
    execution: dict[str, Any] = field(default_factory=dict)

    @property
    def alone(self) -> tuple[str, bool, str, int]:
        """Name what one process does for all layouts alike."""
        return self.shape, self.masked, self.dtype, self.steps


TWO = {
    "ddp": Case(mesh={"dp": 2}),
    "ddp, accumulated": Case(mesh={"dp": 2}, masked=True, execution={"micro_batch": 1}),
    "ddp, tied": Case(mesh={"dp": 2}, shape="visited", steps=3, execution={"recompute_every": 2}),
    "fsdp": Case(mesh={"fsdp": 2}),
    "fsdp, accumulated": Case(mesh={"fsdp": 2}, masked=True, execution={"micro_batch": 2}),
    "fsdp, recomputed": Case(mesh={"fsdp": 2}, shape="gpt", steps=3, execution={"recompute_every": 1}),
    "fsdp, visited twice": Case(mesh={"fsdp": 2}, shape="visited", steps=3, execution={"micro_batch": 2}),
    "offload": Case(mesh={"fsdp": 2}, execution={"offload": True}),
    "tp": Case(mesh={"tp": 2}),
    "tp, accumulated": Case(mesh={"tp": 2}, shape="heads", masked=True, steps=6, execution={"micro_batch": 4}),
    "tp, gpt": Case(mesh={"tp": 2}, shape="gpt", steps=3, execution={"recompute_every": 2}),
    "tp, visited twice": Case(mesh={"tp": 2}, shape="visited", steps=3),
    "gpipe": Case(mesh={"pp": 2}, execution={"pipeline": "gpipe"}),
    "gpipe, masked": Case(mesh={"pp": 2}, shape="staged", masked=True, execution={"pipeline": "gpipe"}),
    "1f1b": Case(mesh={"pp": 2}, execution={"micro_batch": 1}),
    "1f1b, masked": Case(mesh={"pp": 2}, shape="staged", masked=True, steps=6, execution={"recompute_every": 1}),
}
FOUR = {
    "fsdp × tp": Case(mesh={"fsdp": 2, "tp": 2}),
    "fsdp × tp, accumulated": Case(
        mesh={"fsdp": 2, "tp": 2}, shape="heads", masked=True, steps=3, execution={"micro_batch": 2}
    ),
    "hybrid": Case(mesh={"dp": 2, "fsdp": 2}),
    "hybrid, accumulated": Case(mesh={"dp": 2, "fsdp": 2}, masked=True, steps=3, execution={"micro_batch": 1}),
    "dp × tp": Case(mesh={"dp": 2, "tp": 2}, shape="heads", masked=True, steps=3),
    "pp × dp": Case(mesh={"pp": 2, "dp": 2}, shape="staged", masked=True, steps=2),
    "pp × fsdp": Case(mesh={"pp": 2, "fsdp": 2}, shape="staged", masked=True, steps=2),
    "pp × tp": Case(mesh={"pp": 2, "tp": 2}, shape="staged", masked=True, steps=3),
}
LOW = {
    "ddp": Case(mesh={"dp": 2}, dtype="bf16-mixed", steps=3),
    "fsdp": Case(mesh={"fsdp": 2}, dtype="bf16-mixed", steps=3),
    "tp": Case(mesh={"tp": 2}, dtype="bf16-mixed", steps=3),
    "pp": Case(mesh={"pp": 2}, dtype="bf16-mixed", steps=3),
    "ddp, all bf16": Case(mesh={"dp": 2}, dtype="bf16", steps=3),
    "fsdp, all bf16": Case(mesh={"fsdp": 2}, dtype="bf16", steps=3),
    "tp, all bf16": Case(mesh={"tp": 2}, dtype="bf16", steps=3),
    "pp, all bf16": Case(mesh={"pp": 2}, dtype="bf16", steps=3),
}


def recipe_of(case: Case) -> Recipe:
    """Give the recipe of a case."""
    tokens = ROWS * TIME
    return Recipe(
        shape=SHAPES[case.shape], tokens=20 * tokens, seq_len=TIME, batch_tokens=tokens, lr=1e-3, z_loss=1e-4,
        dtype=case.dtype,  # pyright: ignore[reportArgumentType]
        data=Data(train="", mask_documents=case.masked, across_documents=not case.masked),
    )  # fmt: skip


def open_case(case: Case, *, device: str = "cpu") -> Engine:
    """Lay a case out over the processes that there are."""
    recipe = recipe_of(case)
    given = Execution(out="", device=device, mesh=case.mesh or None, **case.execution)
    return open_engine(recipe, given, weights=draw_weights(recipe.shape, scheme="openlm", seed=0))


def draw_batch(step: int, *, masked: bool, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a rank's part of a step's tokens, targets and documents; where masked, rows differ in numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    windows_bw = torch.randint(VOCAB, (ROWS, TIME + 1), generator=generator)
    starts_bw = torch.rand(ROWS, TIME + 1, generator=generator) < torch.linspace(0.0, 0.5, ROWS)[:, None]
    targets_bt = windows_bw[:, 1:].clone()
    if masked:
        targets_bt[starts_bw[:, 1:]] = -1
    rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    return windows_bw[rows, :-1], targets_bt[rows], starts_bw[rows, :-1].long().cumsum(1)


def follow(engine: Engine, case: Case) -> dict[str, Any]:
    """Train a case: gives losses and norms of every step, then held-out losses and weights."""
    optimiser = torch.optim.AdamW(engine.module.parameters(), lr=1e-3, fused=True)
    mesh, losses, norms = engine.mesh, [], []
    for step in range(case.steps):
        batch = draw_batch(step, masked=case.masked, rank=mesh.data_rank, world=mesh.data_world)
        count = float(engine.reduce((batch[1] >= 0).sum().double()))
        sums = engine.accumulate(*batch, count=count)
        losses.append(float(engine.reduce(sums.cross_entropy + 1e-4 * sums.z)) / count)
        norms.append(float(engine.clip(1.0)))
        optimiser.step()
        optimiser.zero_grad()
    tokens_bt, targets_bt, documents_bt = draw_batch(99, masked=True, rank=mesh.data_rank, world=mesh.data_world)
    held_out = engine.losses(tokens_bt, targets_bt, documents_bt if case.masked else None)
    seen = float(engine.reduce(held_out.sum().double()))
    return {"losses": losses, "norms": norms, "held out": seen, "weights": engine.full_weights()}
