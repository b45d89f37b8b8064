"""Which exponents runs cannot tell, said in words: on planted laws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.sweep.unseen import describe_unseen

WIDTHS, DEPTHS, TOKENS = (32, 64, 128), (1, 3, 8), (1e5, 2e5, 4e5)


def plant(*, depth: float, depths: tuple[int, ...] = DEPTHS, form: str = "auto") -> Law:
    """Fit runs of a law whose term of depth has a coefficient."""
    rows_rc = np.array(list(itertools.product(WIDTHS, depths, TOKENS)), dtype=np.float64)
    d_model, n_layers, tokens = rows_rc.T
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal(len(rows_rc))
    loss = (2 + 8 * d_model**-0.6 + depth * n_layers**-0.9 + 200 * tokens**-0.5) * noise
    table = {"d_model": d_model, "n_layers": n_layers, "tokens": tokens, "loss": loss}
    return fit(table | {"params": 12 * n_layers * d_model**2 + 1024 * d_model}, form, draws=0)


def test_depth_that_does_nothing() -> None:
    (said,) = describe_unseen(plant(depth=0.0))
    assert said.startswith("these runs cannot tell the exponent of depth, nor whether depth alone does anything")
    assert "between their least and their most n_layers the law differs by 0.02 %, and its own error is 0.10 %" in said
    assert said.endswith("runs that differ more in n_layers could tell")


def test_an_axis_that_is_told_is_not_mentioned() -> None:
    assert describe_unseen(plant(depth=0.8)) == []


def test_two_depths_tell_no_exponent() -> None:
    """A constant, a coefficient and an exponent over two values are one too many; forms that share it know."""
    law = plant(depth=0.8, depths=(1, 8))
    assert "width-depth" not in [member.form.name for member in law.averaged]
    (said,) = describe_unseen(law)
    assert said.startswith("these runs cannot tell the exponent of depth (width-depth cannot tell E, C, c apart)")
    assert "the law gives it that of width" in said


def test_an_axis_that_did_not_vary_is_no_matter() -> None:
    assert describe_unseen(plant(depth=0.8, depths=(3,))) == []


def test_a_form_of_columns_whose_range_is_not_kept() -> None:
    """Nothing can be said of it but what fitting said."""
    law = fit(read_runs("morph-2025"), "chinchilla", draws=0)
    axes = {name: axis for name, axis in law.axes.items() if name != "params"}
    assert describe_unseen(replace(law, axes=axes)) == []


@pytest.mark.parametrize("form", ["chinchilla", "width-depth"])
def test_a_form_that_was_asked_for(form: str) -> None:
    """What a form does not read is not asked of it; of a term that vanished it is said."""
    said = describe_unseen(plant(depth=0.0, form=form))
    assert len(said) == (form == "width-depth")
