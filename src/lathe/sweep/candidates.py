"""Train, measure and ask the candidates that a plan chose."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.errors import StudyError
from lathe.evals.continuation import CONTINUATION, read_documents, write_continuations
from lathe.evals.evaluate import TaskPlan, TextPlan, evaluate
from lathe.hub.exporting import export_checkpoint
from lathe.model.checkpoint import load_model, load_stop_tokens, load_tokenizer
from lathe.model.generate import generate
from lathe.model.sampling import Sampling
from lathe.shape import Shape
from lathe.studies import Candidate
from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid
from lathe.sweep.grid_document import flatten
from lathe.sweep.kept import Made
from lathe.sweep.stages import MEASUREMENTS, measure_shapes
from lathe.sweep.study import Study
from lathe.train.record import add_scores

EVALUATIONS, ITEMS = "evaluations", "continuation.jsonl"
PROMPT_CHARS, SAMPLE_TOKENS = 160, 96
NO_SWEEP = ("family", "constraints", "tokens_per_param", "shapes", "seeds")
"""Parts of a grid that say which runs a sweep has, and nothing of how one is trained."""


def make_recipes(study: Study, shapes: Sequence[Shape], dataset: str) -> list[Entry]:
    """Make the recipes of shapes: trained as the grid's runs are, but for the study's [training] and tokens."""
    grid = {key: value for key, value in (study.grid or {}).items() if key not in NO_SWEEP}
    base = dict(flatten(grid.get("base", {}))) | dict(flatten(study.training))
    entries: list[Entry] = []
    for shape in shapes:
        document = {
            **grid, "base": base, "shape": {}, "shapes": [codec.encode(shape)], "seeds": [study.seed],
            "tokens": study.plan.tokens, "branches": False,
        }  # fmt: skip
        source = f"the recipe of {shape.d_model}×{shape.n_layers}"
        found = load_grid(document, source=source, data=dataset).entries
        if len(found) > 1:
            raise StudyError(
                f"the grid's [base] trains each shape in {len(found)} ways; say in [training] which of the values that "
                "are several the chosen models take"
            )
        entries += found
    return entries


def measure_candidates(
    study: Study, candidates: Sequence[Candidate], folder: Path, report: Callable[[str], None]
) -> Made:
    """Measure the candidates' latency on this machine."""
    found = measure_shapes([c.shape for c in candidates], study.device, study.workload, folder, report)
    result = {}
    for candidate, measured in zip(candidates, found, strict=True):
        latency = measured.latency
        result[candidate.recipe_id] = {
            "measured_s": latency.total_s,
            "measured_p95_s": (latency.p95 or {}).get("total_s"),
            "measured_memory_bytes": latency.memory_bytes,
        }
    return Made(result=result, shared=(MEASUREMENTS,), runs=len(found))


def evaluate_candidates(
    study: Study, candidates: Sequence[Candidate], folder: Path, dataset: str, report: Callable[[str], None]
) -> Made:
    """Measure the candidates' losses with intervals, and ask them the study's tasks."""
    asked, out = study.evaluate, folder / EVALUATIONS
    out.mkdir(exist_ok=True)
    names, files = list(asked.tasks), {}
    catalogue = asked.catalogue
    if asked.continuations:
        count = write_continuations(dataset, out / ITEMS, count=asked.continuations, seed=study.seed)
        report(f"{count} passages of held-out text to tell the true continuation of")
        names.append(CONTINUATION.name)
        files[CONTINUATION.name] = out / ITEMS
    result: dict[str, Any] = {}
    made = []
    for candidate in candidates:
        found = evaluate(
            folder / candidate.folder,
            text=TextPlan(sources=(dataset, *asked.losses), seq_len=None),
            tasks=TaskPlan(
                names=tuple(names), folder=asked.folder, catalogue=catalogue, files=files, shots=asked.shots,
                seed=study.seed, limit=asked.limit,
            ),
        ).evaluation  # fmt: skip
        made.append(f"{EVALUATIONS}/{candidate.recipe_id}.json")
        codec.save(found, folder / made[-1], kind="evaluation")
        add_scores(folder / candidate.folder, accuracies=found.accuracies, losses={})
        result[candidate.recipe_id] = {
            "accuracies": found.accuracies,
            "accuracy_ses": {task.task: task.se for task in found.tasks if task.se is not None},
            "bits_per_byte": _average([one.bits_per_byte for one in found.losses if one.dataset == dataset]),
        }
    return Made(result=result, files=tuple(made))


def _average(values: Sequence[float | None]) -> float | None:
    """Average what is known of each part of a text; None if something is not."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def write_sample(study: Study, chosen: Candidate, folder: Path, dataset: str) -> Made:
    """Export the chosen model, and let it go on with a held-out text."""
    checkpoint = folder / chosen.folder
    exported = None
    if study.export != "none":
        exported = f"export-{study.export}" + (".gguf" if study.export == "gguf" else "")
        if (folder / exported).is_dir():
            shutil.rmtree(folder / exported)
        export_checkpoint(checkpoint, folder / exported, to=study.export)
    tokenizer = load_tokenizer(checkpoint)
    prompt = study.prompt or _find_prompt(dataset)
    ids = tokenizer.encode(prompt).ids[-chosen.shape.max_seq_len // 2 :]
    (new,) = generate(
        load_model(checkpoint), [ids], max_new_tokens=min(SAMPLE_TOKENS, chosen.shape.max_seq_len // 2),
        sampling=Sampling(temperature=0.8, top_p=0.95), stop_tokens=load_stop_tokens(checkpoint), seed=study.seed,
    )  # fmt: skip
    sample = tokenizer.decode(new)
    made = [] if exported is None else [folder / exported, *sorted((folder / exported).rglob("*"))]
    files = tuple(str(path.relative_to(folder)) for path in made if path.is_file())
    return Made(result={"exported": exported, "prompt": prompt, "sample": sample}, files=files)


def _find_prompt(dataset: str) -> str:
    """Take the beginning of the longest held-out document."""
    texts = read_documents(dataset)
    if not texts:
        raise StudyError(f"{dataset} holds out no text to begin a sample with; give the study a prompt")
    return max(texts, key=len)[:PROMPT_CHARS]
