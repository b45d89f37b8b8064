"""Find the mixture that a study trains on: small models on mixtures drawn at random, and a regression over them.

That is RegMix (see `lathe.laws.mixture`). What it leaves in the study's folder:

    mixture/drawn/m000.toml, …   the mixtures that proxies train on
    mixture/runs.jsonl           their runs, each in a folder of its own (see `lathe.sweep.sweep`)
    mixture/mixtures.csv         weights and losses, as `lathe data mix` reads them
    mixture.toml                 the mixture that was found
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lathe.data.mixture import load_mixture, write_mixture
from lathe.data.store import Dataset
from lathe.documents import write_atomic
from lathe.errors import StudyError, nearest
from lathe.laws.importers import MEAN, read_runs
from lathe.laws.mixture import best_mixture, draw_mixtures, fit_mixture
from lathe.laws.mixture_table import PREFIX
from lathe.laws.regressions import REGRESSIONS
from lathe.recipe import Data
from lathe.sweep.candidates import NO_SWEEP
from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid
from lathe.sweep.kept import Made
from lathe.sweep.study import Mixing, Study
from lathe.train.content import hash_data
from lathe.train.text import open_mixture

MIXTURE, FOLDER = "mixture.toml", "mixture"
DRAWN, TABLE = f"{FOLDER}/drawn", f"{FOLDER}/mixtures.csv"
SPARE = 8
"""Mixtures to draw for each proxy: of few sources many are one source alone, and so alike."""
VARIED = ("d_model", "n_layers")
"""Fields of a grid's shape in whose place others stand."""

Train = Callable[[Sequence[Entry]], Made]


def mixture_content(mixing: Mixing) -> dict[str, str]:
    """Hash what each source holds. Raises DataError for one that is no dataset."""
    found = {name: Data(train=folder) for name, folder in mixing.sources.items()}
    return {name: hash_data(data, open_mixture(data)) for name, data in found.items()}


def make_mixture(study: Study, mixing: Mixing, folder: Path, train: Train) -> Made:
    """Train proxies on mixtures drawn around the sources' sizes, and find the mixture of the lowest loss.

    Raises StudyError for proxies that could tell nothing, and LawError where sources or losses do not allow it.
    """
    needed = REGRESSIONS[mixing.model].runs_needed(len(mixing.sources))
    if mixing.proxies < needed:
        raise StudyError(
            f"[mixture] has {mixing.proxies} proxies of {len(mixing.sources)} sources; a {mixing.model} regression "
            f"needs {needed} at least, and several times that to be of use"
        )
    sizes = _count_tokens(mixing)
    tokens, repeats = study.plan.tokens, mixing.max_repeats
    drawn = draw_mixtures(sizes, SPARE * mixing.proxies, tokens=tokens, max_repeats=repeats, seed=study.seed)
    entries = make_proxies(study, mixing, _write_drawn(drawn, mixing, folder / DRAWN))
    trained = train(entries)
    table = _tabulate(entries, folder / FOLDER / "runs.jsonl", mixing.target)
    write_atomic(folder / TABLE, table.to_csv(index=False))
    law = fit_mixture(table, model=mixing.model, seed=study.seed)
    best = best_mixture(law, sizes=sizes, tokens=tokens, max_repeats=repeats, level=study.law.level, seed=study.seed)
    write_atomic(folder / MIXTURE, write_mixture(best.weights, mixing.sources))
    return Made(
        result={
            "file": MIXTURE, "weights": load_mixture(folder / MIXTURE).weights, "intervals": best.intervals,
            "target": mixing.target, "loss": best.loss, "loss_interval": best.loss_interval,
            "reference": best.reference, "spearman": law.spearman, "level": best.level,
            "warnings": list(law.warnings), "failures": trained.result["failures"],
        },
        files=(MIXTURE, TABLE, *trained.files), flops=trained.flops, runs=trained.runs, before_s=trained.before_s,
        keep=trained.keep,
    )  # fmt: skip


def describe_mixture(found: Mapping[str, Any]) -> list[str]:
    """Say what was found, and what to make of it."""
    shares = []
    for name, weight in found["weights"].items():  # as rounded in the file
        low, high = found["intervals"][name]
        shares.append(f"{name} {weight:.1%} ({min(low, weight):.1%}–{max(high, weight):.1%})")
    low, high = found["loss_interval"]
    of = "the mean loss over validation sets" if found["target"] == MEAN else f"the loss on {found['target']}"
    return [
        f"the mixture is {', '.join(shares)}, intervals at {found['level']:.0%}",
        f"of a proxy on it, {of} is predicted as {found['loss']:.4f} ({low:.4f}–{high:.4f}), and as "
        f"{found['reference']:.4f} on the sources by their sizes; mixtures held out of the regression are ranked with "
        f"a correlation of {found['spearman']:.2f}",
        *found["warnings"],
        *(f"the proxy {name} could not be trained: {error}" for name, error in found["failures"].items()),
    ]


def proxy_document(study: Study, mixing: Mixing) -> dict[str, Any]:
    """Make the grid of one proxy: trained as the study's grid says, or its [training] where there is none."""
    grid = study.grid or {}
    shape = grid.get("shape", {})
    return {
        **{key: value for key, value in grid.items() if key not in NO_SWEEP},
        "base": study.training if study.grid is None else grid.get("base", {}),
        "shape": {key: value for key, value in shape.items() if key not in VARIED} if isinstance(shape, dict) else {},
        "shapes": [mixing.shape], "tokens": mixing.tokens, "seeds": [study.seed], "branches": False,
    }  # fmt: skip


def make_proxies(study: Study, mixing: Mixing, files: Sequence[Path]) -> tuple[Entry, ...]:
    """Make the recipe of a proxy for each mixture's file. Raises StudyError, and as `load_grid` does."""
    document = proxy_document(study, mixing)
    document["base"] = {**document["base"], "data.train": [os.path.abspath(file) for file in files]}
    entries = load_grid(document, source="[mixture]").entries
    if len(entries) != len(files):
        raise StudyError(
            f"[mixture] makes {len(entries)} trainings of {len(files)} mixtures; give its shape one width and depth, "
            "and no setting of the grid's [base] several values"
        )
    _check_validation(entries[0].recipe.data, mixing.target)
    return entries


def _check_validation(data: Data | None, target: str) -> None:
    """Refuse a target that is no validation set, and sets that hold nothing out. Raises StudyError."""
    assert data is not None, "proxies name their mixtures"
    if target not in (MEAN, *data.validation):
        raise StudyError(f"[mixture] target {target!r} is no validation set{nearest(target, (MEAN, *data.validation))}")
    for name, folder in data.validation.items():
        if Dataset(folder).split("held-out").tokens < 2:
            raise StudyError(f"{name} ({folder}) holds nothing out, so it has no loss; build it with a held_out share")


def _count_tokens(mixing: Mixing) -> dict[str, float]:
    given = mixing.sizes or {
        name: float(Dataset(folder).split("train").tokens) for name, folder in mixing.sources.items()
    }
    return {name: given[name] for name in sorted(mixing.sources)}


def _write_drawn(drawn: Mapping[str, Any], mixing: Mixing, folder: Path) -> list[Path]:
    """Write the first mixtures that were drawn, those alike but once, to a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name.removeprefix(PREFIX): weights_m.tolist() for name, weights_m in drawn.items()}
    every = (dict(zip(columns, weights, strict=True)) for weights in zip(*columns.values(), strict=True))
    texts = list(dict.fromkeys(write_mixture(weights, mixing.sources) for weights in every))[: mixing.proxies]
    paths = [folder / f"m{i:0{len(str(len(texts) - 1))}}.toml" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    return paths


def _tabulate(entries: Sequence[Entry], runs: Path, target: str) -> pd.DataFrame:
    """Put the weights of each proxy that was trained beside its loss."""
    losses = read_runs(runs, validation=target)
    loss_of = dict(zip(losses["recipe_id"], losses["loss"], strict=True))
    rows = []
    for entry in entries:
        if entry.recipe.data is not None and entry.recipe.id in loss_of:
            weights = load_mixture(entry.recipe.data.train).weights
            columns = {f"{PREFIX}{name}": weight for name, weight in weights.items()}
            rows.append({**columns, "loss": loss_of[entry.recipe.id]})
    return pd.DataFrame(rows)
