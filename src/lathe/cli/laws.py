"""Commands about laws."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lathe.cli.terminal import (
    Columns,
    Progress,
    Runs,
    Where,
    Words,
    check_level,
    need,
    open_console,
    read_table,
    split_table,
)

ObjectiveName = Literal["squares-log", "huber-log", "squares"]
FoldRule = Literal["auto", "size", "clusters", "quantiles"]


def fit(
    runs: Positional[Runs],
    form: str = "auto",
    out: Path | None = None,
    plot: Path | None = None,
    where: Where = None,
    hold_out: str | None = None,
    objective: ObjectiveName | None = None,
    target: str | None = None,
    folds: FoldRule = "auto",
    columns: Columns = (),
    validation: str | None = None,
    tasks: Words = (),
    draws: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> None:
    """Fit a scaling law to a table of training runs.

    Example: lathe fit morph-2025 --hold-out "size == '1B'" --out law.json --plot law.html

    Args:
        form: auto (average of the forms that best predict sizes left out), best, or a form's name.
        out: where to write the law, as JSON.
        plot: where to draw it: .html, .png, .svg or .pdf.
        hold_out: rows to keep from the fit and predict afterwards; an expression as for --where.
        objective: least squares or Huber's loss on the log, or least squares; the form's own if not given.
        target: the column to predict; the form's own if not given.
        folds: how runs are grouped into sizes for cross-validation.
        validation: the validation set whose loss to fit, where a table has several.
        tasks: tasks, or the name of a set of tasks, whose mean error becomes the column `error`.
        draws: bootstrap draws to keep for intervals.
        level: probability of the intervals that are printed and drawn.
        seed: of the bootstrap.
    """
    from lathe.documents import check_path
    from lathe.laws.fit import fit as fit_law
    from lathe.report.law_tables import held_out_table, law_summary

    check_level(level)
    if out is not None:
        check_path(out, ".json")
    if plot is not None:
        from lathe.report.charts import check_plot_path

        check_plot_path(plot)
    table, held = split_table(read_table(runs, columns, where, validation, tasks, target), hold_out, source=runs)
    with Progress("Fitting") as tick:
        law = fit_law(
            table, form, target=target, objective=objective, seed=seed, draws=draws, folds=folds, progress=tick
        )
    console = open_console()
    console.print(law_summary(law))
    if held is not None:
        console.print(held_out_table(law, held, level=level))
    if out is not None:
        law.save(out)
        console.print(f"law: {out}")
    if plot is not None:
        from lathe.report.charts import save_chart
        from lathe.report.law_page import law_page

        save_chart(law_page(law, table, held_out=held, level=level), plot)
        console.print(f"plot: {plot}")


def predict(
    law: Path,
    shape: Words,
    tokens: float | None = None,
    tokens_per_param: float | None = None,
    level: float = 0.9,
    assume: Words = (),
    json: bool = False,
) -> None:
    """Predict what shapes would reach, with intervals.

    Example: lathe predict --law law.json --shape scale_open_lm_1b_v8 m1b_neox --tokens 29e9

    Args:
        law: a law that `lathe fit --out` wrote.
        shape: presets' names or files.
        tokens: training tokens.
        tokens_per_param: training tokens a parameter, instead of tokens.
        level: probability of the interval.
        assume: axes that no fitted run varied and to predict off all the same (vocab_size, tied, ff_ratio, kv_ratio,
            sharing).
        json: print JSON, a line a shape.
    """
    import numpy as np

    from lathe.codec import canonical_json
    from lathe.errors import LawError
    from lathe.laws.axes import shape_columns
    from lathe.laws.law import Law
    from lathe.presets.shapes import load_shape
    from lathe.report.law_tables import prediction_table

    need(shape, "--shape", "a preset's name or a file")
    if (tokens is None) == (tokens_per_param is None):
        raise LawError("give either --tokens or --tokens-per-param")
    fitted = Law.load(law)
    found = [load_shape(name) for name in shape]
    each = [tokens if tokens is not None else (tokens_per_param or 0) * s.params for s in found]
    rows = [shape_columns(s, tokens=t) for s, t in zip(found, each, strict=True)]
    table = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    guess = fitted.predict(table, assume=assume)
    interval = fitted.interval(table, level=level, assume=assume) if fitted.has_draws else None
    if not json:
        open_console().print(prediction_table(shape, table, fitted, guess, interval))
        return
    for i, name in enumerate(shape):
        row = {"shape": name, "tokens": float(table["tokens"][i]), fitted.target: float(guess[i])}
        if interval is not None:
            row |= {"level": level, "low": float(interval.low[i]), "high": float(interval.high[i])}
        one = {key: values[i : i + 1] for key, values in table.items()}
        print(canonical_json(row | {"extrapolation": fitted.extrapolation(one)}))


def compare(
    runs: Positional[Runs],
    forms: Words = ("chinchilla-tied", "chinchilla", "aspect", "width-depth", "auto"),
    fit_where: str | None = None,
    focus: str | None = None,
    as_published: bool = False,
    where: Where = None,
    objective: ObjectiveName | None = None,
    target: str = "loss",
    folds: FoldRule = "auto",
    columns: Columns = (),
    validation: str | None = None,
) -> None:
    """Set law forms side by side: fitted on some runs and judged on others.

    Without --fit-where each size is left out in turn and predicted from the rest.

    Example: lathe compare morph-2025 --forms aspect width-depth auto --fit-where set_b --focus "size == '1B'"

    Args:
        forms: names of forms, auto or best.
        fit_where: the runs to fit; an expression as for --where.
        focus: the runs whose errors and ranks are shown apart; those not fitted if not given.
        as_published: repeat the authors' own fits of the Morph grid, made as they made them.
        objective: least squares or Huber's loss on the log, or least squares; each form's own if not given.
        target: the column to predict.
        folds: how runs are grouped into sizes.
        validation: the validation set whose loss to fit, where a table has several.
    """
    from lathe.laws.compare import compare as compare_forms
    from lathe.laws.compare import compare_as_published, leave_sizes_out
    from lathe.laws.importers import match_rows
    from lathe.report.law_tables import comparison_table

    need(forms, "--forms", "a form's name, auto or best")
    table = read_table(runs, columns, where, validation, (), target)
    focus_n = None if focus is None else match_rows(table, focus, source=runs)
    console = open_console()
    if as_published:
        rows = compare_as_published(table, focus_n=focus_n)
        console.print(comparison_table([r for r, _ in rows], focus=focus or "the 1B runs"))
        for row, found in rows:
            console.print(f"{row.fit_set} {row.form}: " + ", ".join(f"{k} {v:.6g}" for k, v in found.items()))
        return
    with Progress("Comparing") as tick:
        if fit_where is None:
            found = leave_sizes_out(table, forms, target=target, objective=objective, folds=folds, progress=tick)
            focus = "every run, predicted from the other sizes"
        else:
            fitted_n = match_rows(table, fit_where, source=runs)
            found = compare_forms(
                table, forms, fitted_n=fitted_n, focus_n=~fitted_n if focus_n is None else focus_n, target=target,
                objective=objective, fit_set=fit_where, folds=folds, progress=tick,
            )  # fmt: skip
    console.print(comparison_table(found, focus=focus or "the runs not fitted"))


def optimal(
    law: Path,
    flops: float | None = None,
    target_loss: float | None = None,
    inference_tokens: float | None = None,
    aspect: float | None = None,
    level: float = 0.9,
) -> None:
    """Split a training budget between params and tokens, or find the cheapest way to a loss over a model's life.

    Example: lathe optimal --law law.json --flops 1e21

    Example: lathe optimal --law law.json --target-loss 2.6 --inference-tokens 1e12

    Args:
        law: a law that `lathe fit --out` wrote.
        flops: training FLOPs, counted as 6 · params · tokens.
        target_loss: the loss to reach, with --inference-tokens.
        inference_tokens: tokens to be served over the model's life.
        aspect: d_model / n_layers; the best within the fitted range if not given.
        level: probability of the intervals.
    """
    from lathe.errors import LawError
    from lathe.laws.law import Law
    from lathe.laws.optimum import lifetime_optimal
    from lathe.report.law_tables import optimum_table

    fitted = Law.load(law)
    if flops is not None and target_loss is None and inference_tokens is None:
        found = fitted.optimal(flops=flops, aspect=aspect, level=level)
    elif flops is None and target_loss is not None and inference_tokens is not None:
        found = lifetime_optimal(fitted, target_loss=target_loss, inference_tokens=inference_tokens, aspect=aspect)
    else:
        raise LawError("give either --flops, or --target-loss together with --inference-tokens")
    open_console().print(optimum_table(found))
