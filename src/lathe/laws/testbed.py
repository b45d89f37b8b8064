"""Read a folder in the layout of the scaling testbed: `models/*.json` and `evals/*.json`, one pair a run.

Gadre et al. 2024, arXiv:2403.08540, repository mlfoundations/scaling, exp_data (MIT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lathe.columns import name_column
from lathe.errors import RunsError, ShapeError
from lathe.shape import Shape

DEFAULT_VALIDATION = "c4_val"
"""The validation set whose loss the authors' laws predict."""

# fmt: off
TASK_SETS: Mapping[str, tuple[str, ...]] = {
    "17": (
        "arc_easy", "bigbench_cs_algorithms", "bigbench_dyck_languages", "bigbench_novel_concepts",
        "bigbench_operators", "bigbench_qa_wikidata", "boolq", "commonsense_qa", "copa", "coqa",
        "hellaswag", "hellaswag_zeroshot", "lambada_openai", "piqa", "pubmed_qa_labeled", "squad",
        "winograd",
    ),
    "46": (
        "agi_eval_lsat_ar", "agi_eval_lsat_lr", "agi_eval_lsat_rc", "agi_eval_sat_en", "arc_challenge",
        "arc_easy", "bbq", "bigbench_conceptual_combinations", "bigbench_conlang_translation",
        "bigbench_cs_algorithms", "bigbench_dyck_languages", "bigbench_elementary_math_qa",
        "bigbench_language_identification", "bigbench_logical_deduction", "bigbench_misconceptions",
        "bigbench_novel_concepts", "bigbench_operators", "bigbench_qa_wikidata",
        "bigbench_repeat_copy_logic", "bigbench_strange_stories", "bigbench_strategy_qa",
        "bigbench_understanding_fables", "boolq", "commonsense_qa", "copa", "coqa",
        "enterprise_pii_classification", "hellaswag", "hellaswag_zeroshot", "jeopardy", "lambada_openai",
        "logi_qa", "math_qa", "mmlu", "mmlu_zeroshot", "openbook_qa", "piqa", "pubmed_qa_labeled",
        "simple_arithmetic_nospaces", "simple_arithmetic_withspaces", "siqa", "squad",
        "winogender_mc_female", "winogender_mc_male", "winograd", "winogrande",
    ),
}
# fmt: on
"""Named sets of tasks: "17" are those that the authors' error law averages, "46" all that they evaluate."""

TASK_ALIASES = {"winograd_wsc": "winograd", "logiqa": "logi_qa", "obqa": "openbook_qa"}

_OPENLM = {  # configurations that the testbed names without saying their shape: d_model, n_layers, n_heads
    "open_lm_1b": (2048, 24, 16),
    "open_lm_7b": (4096, 32, 32),
}
_SIZES = {411_616_256: "411M"}  # the authors cut, and do not round, this one
_Z_95 = 1.959964  # half the width of a normal 95 % interval, in standard errors


def read_testbed(folder: Path) -> list[dict[str, Any]]:
    """Read one row a run: shape, tokens, and `loss_<set>`, `loss_se_<set>`, `accuracy_<task>` columns.

    Standard errors come from the 95 % intervals bootstrapped over sequences (those over tokens are too
    narrow, as the tokens of a text go together). `params` is the files' own count; the rest of the shape
    follows from the model's name and OpenLM's rule for d_ff.

    Raises:
        RunsError: another layout, a file that is broken or lacks a field, a name that tells no shape.
    """
    models = sorted((folder / "models").glob("*.json"))
    if not models:
        raise RunsError(
            f"folder {folder} holds no models/*.json; wanted the scaling testbed's layout (models/*.json and "
            "evals/*.json), or the path of one .jsonl, .csv or .parquet file"
        )
    evals: dict[str, Path] = {}
    for path in sorted((folder / "evals").glob("evaluation_*.json")):
        name = path.stem.removeprefix("evaluation_").rpartition("_")[0]
        if name in evals:
            raise RunsError(f"{path} and {evals[name].name} both evaluate {name!r}; keep one of them")
        evals[name] = path
    return [_read_run(path, evals=evals) for path in models]


def find_tasks(tasks: str | Sequence[str], *, known: Sequence[str]) -> list[str]:
    """Resolve a named set of tasks, or tasks by name or alias (`operators` is `bigbench_operators`).

    Unknown names come back as they are.
    """
    if isinstance(tasks, str):
        tasks = TASK_SETS.get(tasks, tuple(t.strip() for t in tasks.split(",")))
    options = {t: (t, f"bigbench_{t}", TASK_ALIASES.get(t, t)) for t in tasks}
    return [next((o for o in options[t] if o in known), t) for t in tasks]


def _read_run(path: Path, *, evals: Mapping[str, Path]) -> dict[str, Any]:
    model = _load(path)
    try:
        name, asked = str(model["name"]), model["hyperparameters"]
        params, tokens = asked["params"], asked["tokens"]
        row = {
            "name": name,
            "size": _SIZES.get(params) or _name_size(params),
            "dataset": model["dataset_name"],
            **_read_shape(asked, path=path),
            "params": params,
            "tokens": tokens,
            "nominal_tokens_per_param": 20 * asked["chinchilla_multiplier"],
            "loss_kind": "held-out",
            "seed": _read_seed(model.get("open_lm_args", [])),
        }
        for result in model["results"]:
            validation = _name_validation(result["val_data"][0])
            row[f"loss_{validation}"] = result["loss"]
            width = result["loss_sequences_upper_95"] - result["loss_sequences_lower_95"]
            row[f"loss_se_{validation}"] = width / (2 * _Z_95)
        if name in evals:
            scores = _load(evals[name])["eval_metrics"]["icl"]
            row |= {f"accuracy_{name_column(task)}": value for task, value in scores.items()}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RunsError(
            f"{path}, or the file in evals/ that goes with it, is not laid out as the scaling testbed's: "
            f"{type(error).__name__} {error}"
        ) from None
    return row


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunsError(f"{path} is not whole JSON ({error}); fetch the file again") from None
    if not isinstance(document, dict):
        raise RunsError(f"{path} holds a {type(document).__name__}; wanted one JSON object")
    return document


def _read_shape(asked: Mapping[str, Any], *, path: Path) -> dict[str, Any]:
    """Read the shape off a configuration's name, such as d=96_l=8_h=4, and check it against the params."""
    config = Path(asked["model"]).stem
    numbers = re.fullmatch(r"d=(\d+)_l=(\d+)_h=(\d+)", config)
    if numbers is None and config not in _OPENLM:
        raise RunsError(
            f"{path}: model {config!r} tells no shape; wanted d=<width>_l=<layers>_h=<heads>, {' or '.join(_OPENLM)}"
        )
    d_model, n_layers, n_heads = map(int, numbers.groups()) if numbers else _OPENLM[config]
    params = asked["params"]
    vocab_size = (params - asked["params_no_embed"]) // d_model  # theirs leaves out the embedding, not the head
    try:
        shape = Shape.of(
            d_model=d_model, n_layers=n_layers, n_heads=n_heads, vocab_size=vocab_size, norm="layernorm-gain"
        )
    except ShapeError as error:
        raise RunsError(f"{path}: model {config!r}: {error}") from None
    if abs(shape.params - params) > 0.01 * params:
        raise RunsError(f"{path}: {config!r} makes {shape.params} params by OpenLM's rules, but the file says {params}")
    words = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "tied")
    return {
        "non_embedding_params": params - 2 * vocab_size * d_model,
        **{word: getattr(shape, word) for word in words},
    }


def _read_seed(arguments: Sequence[str]) -> int | None:
    return int(arguments[arguments.index("--seed") + 1]) if "--seed" in arguments else None


def _name_validation(path: str) -> str:
    """Name a validation set by the folder its shards are in."""
    return name_column(Path(path).parent.name)


def _name_size(params: int) -> str:
    unit, letter = (1e9, "B") if params >= 1e9 else (1e6, "M")
    return f"{params / unit:.1f}{letter}" if unit == 1e9 else f"{params / unit:.0f}{letter}"
