"""The command that finds a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.terminal import Words, check_level, open_console

Pairs = Annotated[Words, arg(metavar="NAME=…")]


def mix(
    table: Positional[Path],
    target: str = "loss",
    model: Literal["linear", "quadratic", "boosted"] = "linear",
    sizes: Pairs = (),
    tokens: float | None = None,
    max_repeats: float = 4.0,
    datasets: Pairs = (),
    out: Path | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> None:
    """Find the mixture of data with the lowest loss, from a table of small runs on many mixtures (RegMix).

    Example: lathe data mix runs.csv --model quadratic --out mixture.toml

    Args:
        table: a .csv, .jsonl or .parquet file with columns weight.<source>, which sum to 1 in each row, and the target.
        target: the column to make low.
        model: how the loss follows from the weights; boosted needs scikit-learn or LightGBM.
        sizes: tokens of each source, such as web=3e11 books=2e10, to simulate around; else the runs' mean mixture.
        tokens: training tokens of the large run; with sizes, they cap how much of a source there is.
        max_repeats: how many times a source may be read.
        datasets: folder of each source's dataset, such as web=datasets/web, to name in --out; else the source's name.
        out: where to write the mixture, as TOML that training reads.
        level: probability of the intervals.
        seed: of the refits and the simulated mixtures.
    """
    from lathe.data.mixture import write_mixture
    from lathe.documents import check_path, write_atomic
    from lathe.errors import LawError
    from lathe.laws.mixture import best_mixture, fit_mixture
    from lathe.laws.mixture_table import read_mixture_table
    from lathe.report.mix_table import mix_table

    check_level(level)
    if seed < 0 or max_repeats <= 0:
        raise LawError(f"--seed {seed}, --max-repeats {max_repeats:g}; wanted a seed of 0 or more, repeats above 0")
    if out is not None:
        check_path(out, ".toml")
    numbers = {name: _number(value) for name, value in _split(sizes, "--sizes").items()}
    law = fit_mixture(read_mixture_table(table), target=target, model=model, seed=seed)
    folders = {name: name for name in law.sources} | _split(datasets, "--datasets", known=law.sources)
    best = best_mixture(
        law, sizes=numbers or None, tokens=tokens, max_repeats=max_repeats, level=level, seed=seed
    )  # fmt: skip
    console = open_console()
    console.print(mix_table(law, best))
    if out is not None:
        write_atomic(out, write_mixture(best.weights, folders))
        console.print(f"mixture: {out}")


def _split(pairs: Sequence[str], flag: str, *, known: Sequence[str] | None = None) -> dict[str, str]:
    from lathe.errors import LawError, nearest

    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise LawError(f"{flag} {pair!r} is no NAME=VALUE")
        if known is not None and name not in known:
            raise LawError(f"{flag} names {name!r}, which is no source{nearest(name, known)}")
        found[name] = value
    return found


def _number(text: str) -> float:
    from lathe.errors import LawError

    try:
        return float(text)
    except ValueError:
        raise LawError(f"--sizes: {text!r} is no number of tokens, such as 3e11") from None
