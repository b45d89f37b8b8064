"""Predict the memory that one process needs to train, by part, at the moment when it needs the most.

A step has four such moments: when the last chunk's logits stand on top of all activations, when the backward pass
begins, when it has just begun with the last block, and when it ends at the embedding, with all gradients made; with a
teacher there is a fifth, when that reads. What autograd keeps of a block was listed tensor by tensor (torch 2.13), for
the CPU's kernels and, from their documentation, for the GPU's; products' own workspaces, the allocator's rounding and
the libraries themselves are left out. So are the fp32 copies, of a block and the head, of a teacher on a CPU without
bf16 instructions.

Letters: n tokens of a micro-batch, d d_model, q and k the widths of all query and key heads, f d_ff, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from lathe.model.loss import count_chunk
from lathe.recipe import Recipe
from lathe.shape import MLP_MATRICES, Shape
from lathe.train.execution import Execution

TEACHER = 2.0
"""Bytes of a teacher's numbers, which are bf16."""
GATHERED_BLOCKS = 2
"""Blocks that FSDP holds whole at once: the one in use, and the next."""
PARTS = ("weights", "gradients", "optimiser", "moving average", "teacher", "gathered", "activations", "logits")
Parts = dict[str, float]


class Widths(NamedTuple):
    """Hold the bytes of a number: of `kept` weights and their gradients, the stream, products, reduced gradients."""

    kept: float
    stream: float
    products: float
    reduced: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Hold how a step is laid out: ranks along each axis, sequences at once, and how many such parts a step has."""

    sizes: Mapping[str, int]
    micro_batch: int
    micro_batches: int
    sharded: bool
    gpu: bool

    @property
    def world(self) -> int:
        """Count all processes."""
        return prod(self.sizes.values())

    @property
    def data_world(self) -> int:
        """Count the parts that a step's batch is cut into."""
        return self.sizes["dp"] * self.sizes["fsdp"]


class Stage(NamedTuple):
    """Hold what one process of a pipeline has: visits and stored blocks, and whether its ends are the decoder's."""

    visits: int
    blocks: int
    first: bool
    last: bool
    in_flight: int


def footprint(recipe: Recipe, execution: Execution, layout: Layout, *, teacher: Shape | None = None) -> Parts:
    """Give the bytes of each part for the process that needs the most; `teacher` is the shape of a teacher."""
    stages = [_peak(recipe, execution, layout, stage, teacher) for stage in _stages(recipe.shape, execution, layout)]
    return max(stages, key=lambda parts: sum(parts.values()))


def _stages(shape: Shape, execution: Execution, layout: Layout) -> list[Stage]:
    """List the first and the last stage, which hold the ends; 1F1B keeps as many micro-batches as stages follow."""
    pp, count = layout.sizes["pp"], layout.micro_batches
    found = []
    for place in sorted({0, pp - 1}):
        blocks = shape.stored_layers // pp + (place < shape.stored_layers % pp)
        flying = count if execution.pipeline == "gpipe" else min(count, pp - place)
        visits = blocks * shape.sharing_count
        found.append(Stage(visits, blocks, place == 0, place == pp - 1, flying if pp > 1 else 1))
    return found


def _peak(recipe: Recipe, execution: Execution, layout: Layout, stage: Stage, teacher: Shape | None) -> Parts:
    shape, groups = recipe.shape, recipe.shape.param_groups
    widths = _widths(recipe, layout)
    tp, shards = layout.sizes["tp"], layout.sizes["fsdp"] if layout.sharded else 1
    matrices = (groups["attention"] + groups["mlp"]) / shape.stored_layers / tp
    block = matrices + groups["norms"] / shape.stored_layers
    embedding = (groups["embedding"] + groups["positions"]) * stage.first
    head = shape.vocab_size * shape.d_model * stage.last
    ends = embedding + (0 if shape.tied else head)
    params = stage.blocks * block + ends
    always = {
        "weights": params * widths.kept / shards,
        "optimiser": _remembered(recipe, params, stage.blocks * matrices) * widths.kept / shards,
        "moving average": params * widths.kept / shards if recipe.ema is not None else 0.0,
        "teacher": 0.0 if teacher is None else teacher.weight_bytes("bf16"),
    }
    gathered, made = 0.0, params * widths.kept / shards
    if layout.sharded:
        gathered = (GATHERED_BLOCKS * block + ends) * widths.products + GATHERED_BLOCKS * block * widths.reduced
        if layout.micro_batches > 1:
            made = params * widths.reduced  # FSDP adds gradients up whole, and shards them with the last
    elif recipe.dtype == "bf16-mixed":
        gathered = (stage.blocks * matrices + head) * widths.products  # autocast's copies
    waiting = layout.micro_batches > 1 or (layout.data_world > 1 and not layout.sharded)
    before = made if waiting else 0.0
    held = _activations(recipe, execution, layout, widths, stage)
    grad_x = layout.micro_batch * recipe.seq_len * shape.d_model * widths.products * stage.last
    head_grad, embedding_grad = head * widths.kept, embedding * widths.kept
    left = (
        0.0 if waiting else embedding_grad * (not shape.tied) + block * widths.kept
    )  # what the first block still adds
    reading, lesson = _lesson(recipe, layout, teacher)
    logits = _logits(recipe, layout, taught=teacher is not None) * stage.last
    moments = [
        (before, reading, 0.0),
        (before + 4 * head, held.kept + grad_x, logits + lesson),
        (before + 2 * head * widths.products + (head_grad if widths.products == 2 else 0), held.kept + 2 * grad_x, 0.0),
        (before or head_grad, held.kept + held.work, 0.0),
        (made - left, held.last, 0.0),
        (made + embedding_grad * (waiting or shape.tied), 2 * held.stream, 0.0),
    ]
    gradients, activations, logits = max(moments, key=sum)
    return always | {
        "gradients": gradients, "gathered": gathered, "activations": activations, "logits": logits,
    }  # fmt: skip


def _widths(recipe: Recipe, layout: Layout) -> Widths:
    kept = 2.0 if recipe.dtype == "bf16" else 4.0
    products = 4.0 if recipe.dtype == "fp32" else 2.0
    # autocast leaves the embedding's rows, and so the stream, in fp32; FSDP's policy casts the rows too
    stream = products if layout.sharded else kept
    return Widths(kept, stream, products, 4.0 if recipe.dtype == "bf16-mixed" else kept)


def _remembered(recipe: Recipe, params: float, matrices: float) -> float:
    """Count the numbers that the optimiser keeps: two a weight, or one for Muon's matrices."""
    return 2 * params - (matrices if recipe.optimiser.name == "muon" else 0)


class Held(NamedTuple):
    """Hold the bytes of activations: all that is kept, what the last block's backward pass adds; the first block's
    alone, with what its pass adds; and the stream.
    """

    kept: float
    work: float
    last: float
    stream: float


def _activations(recipe: Recipe, execution: Execution, layout: Layout, widths: Widths, stage: Stage) -> Held:
    shape, tokens = recipe.shape, layout.micro_batch * recipe.seq_len
    stream = tokens * shape.d_model * widths.stream
    block = tokens * _block_bytes(shape, layout, widths)
    if recipe.data is not None and recipe.data.mask_documents:
        block += tokens * recipe.seq_len * widths.products  # every block keeps its mask as numbers
    again = range(0, stage.visits, execution.recompute_every or stage.visits + 1)
    recomputed = len(again) if execution.recompute_every else 0
    end = (tokens * _norm_bytes(shape, layout, widths) + stream) * stage.last
    kept = stage.in_flight * ((stage.visits - recomputed) * block + recomputed * stream + end)
    work = tokens * (3 * shape.d_ff / layout.sizes["tp"] * widths.products + 2 * shape.d_model * widths.stream)
    first = stream + block + work
    return Held(kept, work + (block if recomputed and again[-1] == stage.visits - 1 else 0.0), first, stream)


def _block_bytes(shape: Shape, layout: Layout, widths: Widths) -> float:
    """Size what autograd keeps of a block for one token."""
    tp, wide = layout.sizes["tp"], widths.products
    d, f = shape.d_model, shape.d_ff / tp
    q, k = shape.n_heads * shape.d_head / tp, shape.n_kv_heads * shape.d_head / tp
    streams = 1 if shape.parallel_residual else 2
    norms = streams * d * widths.stream + 2 * (_norm_bytes(shape, layout, widths) - d * widths.stream)
    # autocast casts the MLP's input for gate and up each
    inputs = 2 + (shape.mlp == "swiglu" and widths.stream > wide)
    attention = q + 2 * k + q  # the projection's output, and attention's
    if shape.position == "rotary":
        attention += q + k + (0 if layout.gpu else q)  # turned queries and keys; the CPU's kernel keeps their order
    if shape.qk_norm != "none":
        attention += q + k if shape.qk_norm == "full" else q * (shape.n_heads > shape.n_kv_heads)  # copied into order
        if shape.norm == "rmsnorm" and not layout.gpu:
            attention += (q + k) * (1 if wide == 4 else 4)
    inner = {"swiglu": 4, "relu": 1}.get(shape.mlp, MLP_MATRICES[shape.mlp])
    return norms + wide * (inputs * d + attention + inner * f)


def _norm_bytes(shape: Shape, layout: Layout, widths: Widths) -> float:
    """Size what a norm keeps of one token: its input, and on a CPU RMSNorm's steps in fp32."""
    if shape.norm == "rmsnorm" and not layout.gpu:
        return 8.0 * shape.d_model
    return widths.stream * shape.d_model


def _lesson(recipe: Recipe, layout: Layout, teacher: Shape | None) -> tuple[float, float]:
    """Size what stands while a teacher reads (stream, norm, a residual; d_ff thrice), and what it leaves."""
    if teacher is None:
        return 0.0, 0.0
    tokens = layout.micro_batch * recipe.seq_len
    return TEACHER * tokens * 3 * (teacher.d_model + teacher.d_ff), TEACHER * tokens * teacher.d_model


def _logits(recipe: Recipe, layout: Layout, *, taught: bool) -> float:
    """Size one chunk's logits and their log-softmax, or the four that stand while a teacher's are compared."""
    tokens, vocab_size = layout.micro_batch * recipe.seq_len, recipe.shape.vocab_size
    rows = count_chunk(vocab_size, "cuda" if layout.gpu else "cpu", taught=taught)
    return 4.0 * vocab_size * (4 if taught else 2) * min(tokens, rows)
