"""Enumerate shapes worth considering: aligned to the hardware, and held where the law has seen nothing.

Axes: n a candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lathe.errors import BudgetError, nearest
from lathe.laws.axes import Axis
from lathe.presets.shapes import shape_presets
from lathe.shape import Shape, count_non_embedding_params, count_params
from lathe.shape_checks import Sharing

VARIED = 1.2
"""The d_ff ratio counts as varied when its largest is this many times its smallest: less is rounding."""
COLUMNS = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "tied", "sharing_count")
FREE: Mapping[str, str] = {
    "ff_ratio": "d_ff / d_model",
    "kv_ratio": "n_kv_heads / n_heads",
    "vocab_size": "vocabulary",
    "tied": "tying of head and embedding",
    "sharing": "sharing of layers",
}
"""Axes that may be freed with `assume`, and what they are."""
AXIS_FIELDS: Mapping[str, str] = {
    "ff_ratio": "ff_ratios",
    "kv_ratio": "kv_ratios",
    "vocab_size": "vocab_sizes",
    "tied": "tied",
    "sharing": "sharing_counts",
}
"""The field of `Space` that holds an axis's choices."""
KV_RATIOS = (1.0, 0.5, 0.25, 0.125)
FF_RATIOS = (2.0, 2.5, 8 / 3, 3.0, 3.5, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The shapes to consider, as choices an axis; every combination that fits together is a candidate.

    `d_models` and `ff_multiple` set the alignment; `d_heads` are tried in order and the first that divides d_model is
    taken; heads (and KV heads) are multiples of `tensor_parallel`. `ff_ratios` give d_ff = ratio · d_model rounded up
    to `ff_multiple`. `kv_ratios` are KV heads a head. `base` lends everything else, the pattern in which layers are
    shared too; one that shares none lends `immediate`, whose repeats a cache serves best.
    """

    base: Shape
    d_models: tuple[int, ...] = tuple(range(256, 8192 + 1, 64))
    n_layers: tuple[int, ...] = tuple(range(2, 129))
    d_heads: tuple[int, ...] = (128, 64)
    kv_ratios: tuple[float, ...] = (1.0,)
    ff_ratios: tuple[float, ...] = (8 / 3,)
    ff_multiple: int = 256
    vocab_sizes: tuple[int, ...] = (50432,)
    tied: tuple[bool, ...] = (False,)
    sharing_counts: tuple[int, ...] = (1,)
    tensor_parallel: int = 1
    assumed: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    """Axes of which the fitted runs say nothing: what stands here is a guess."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple) and item.name not in ("assumed", "guessed") and not value:
                raise BudgetError(f"the space of shapes has no {item.name}; give at least one")
            numbers = value if isinstance(value, tuple) and item.name not in ("assumed", "guessed", "tied") else ()
            if bad := [number for number in numbers if not number > 0]:
                raise BudgetError(f"the space of shapes has {item.name} {bad[0]}; wanted numbers above zero")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Columns of shapes, one entry a candidate, over a base shape for what they have in common.

    It has a `Shape`'s fields, so the functions that count and time a shape take it as it is. `references` maps a row to
    the name of the published shape that stands there; `freed` are the axes that set rows apart beside width and depth.
    """

    base: Shape
    columns: Mapping[str, np.ndarray]
    references: Mapping[int, str] = field(default_factory=dict)
    freed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["d_model"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("base", "columns", "references", "freed"):
            raise AttributeError(name)
        return self.columns[name] if name in self.columns else getattr(self.base, name)

    @property
    def sharing(self) -> str:
        """Name the pattern; rows with a count of one share nothing."""
        return _pattern(self.base) if (self.columns["sharing_count"] > 1).any() else "none"

    @property
    def visited_params(self) -> np.ndarray:
        """Count the weights a token passes through, a shared block's at every visit: the N of 6·N·D."""
        once = {**self.columns, "sharing_count": np.ones(len(self))}
        return np.asarray(count_params(dataclasses.replace(self, columns=once)), dtype=np.float64)

    def take(self, rows: slice | np.ndarray) -> Candidates:
        """Keep some rows, a slice or row numbers in the order asked for; references follow."""
        if isinstance(rows, slice):
            index = range(len(self))[rows]
            kept = {index.index(row): name for row, name in self.references.items() if row in index}
        else:
            places = np.flatnonzero(np.isin(rows, list(self.references))).tolist()
            kept = {place: self.references[int(rows[place])] for place in places}
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Candidates(base=self.base, columns=columns, references=kept, freed=self.freed)

    def name(self, row: int) -> str:
        """Call a candidate by width and depth, what else sets it apart, and its published name if it has one."""
        at = {name: values[row] for name, values in self.columns.items()}
        parts = {
            "ff_ratio": f"ff {at['d_ff']:.0f}",
            "kv_ratio": f"kv {at['n_kv_heads']:.0f}/{at['n_heads']:.0f}",
            "vocab_size": f"vocab {at['vocab_size']:.0f}",
            "tied": "tied" if at["tied"] else "untied",
            "sharing": f"{at['n_layers'] / at['sharing_count']:.0f} stored",
        }
        name = " ".join([f"{at['d_model']:.0f}×{at['n_layers']:.0f}", *(parts[axis] for axis in self.freed)])
        return f"{self.references[row]} ({name})" if row in self.references else name

    def shape(self, row: int) -> Shape:
        """Build one candidate's shape."""
        values = {name: self.columns[name][row].item() for name in COLUMNS}
        numbers = {name: bool(v) if name == "tied" else int(v) for name, v in values.items()}
        return dataclasses.replace(
            self.base, **numbers, sharing=_pattern(self.base) if numbers["sharing_count"] > 1 else "none"
        )

    def law_columns(self, tokens: Any) -> dict[str, np.ndarray]:
        """Lay the candidates out as the columns that laws read."""
        names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "tied")
        table = {name: self.columns[name] for name in names}
        table["params"] = count_params(self)
        table["non_embedding_params"] = count_non_embedding_params(self)
        table["tokens"] = np.broadcast_to(np.asarray(tokens, dtype=np.float64), (len(self),))
        return table


def find_space(axes: Mapping[str, Axis], *, assume: Collection[str] = (), **choices: Any) -> Space:
    """Make the space of shapes a law can speak of: free in width and depth, held at the runs' values elsewhere.

    Args:
        axes: what the fitted runs varied, `law.axes`.
        assume: axes of `FREE` to free all the same; the plan marks what they buy as unsupported.
        choices: fields of `Space` to set; choices on a held axis are refused unless it is assumed. What the runs do not
            say at all is taken from `base`.

    Raises:
        BudgetError: an unknown axis or field, or a choice on a held axis.
    """
    known = [f.name for f in dataclasses.fields(Space)]
    for name in assume:
        if name not in FREE:
            raise BudgetError(f"no axis {name!r} can be assumed{nearest(name, FREE)}")
    for name in choices:
        if name not in known:
            raise BudgetError(f"the space of shapes has no {name!r}{nearest(name, known)}")
    base = choices.pop("base", None)
    held = _hold(axes, base)
    guessed = tuple(name for name in AXIS_FIELDS if name not in axes and name != "sharing")
    wide: dict[str, Any] = {
        "ff_ratios": FF_RATIOS,
        "kv_ratios": KV_RATIOS,
        "tied": (False, True),
        "sharing_counts": tuple(sorted({1, 2, *held["sharing_counts"], *([base.sharing_count] if base else [])})),
        "vocab_sizes": tuple(sorted({32000, 50432, 65536, *held["vocab_sizes"]})),
    }
    for axis, name in AXIS_FIELDS.items():
        if axis in assume:
            held[name] = wide[name]
        elif name in choices and axis not in guessed and not set(choices[name]) <= set(held[name]):
            raise BudgetError(
                f"{name}={choices[name]} leaves the runs' {FREE[axis]} ({held[name]}), which the law cannot see; free"
                f" it with assume={axis!r}"
            )
    base = base or _base(held)
    return Space(**{"base": base, **held, **choices, "assumed": tuple(assume), "guessed": guessed})


def _pattern(base: Shape) -> Sharing:
    """Name the order in which shared layers are visited."""
    return "immediate" if base.sharing == "none" else base.sharing


def _base(held: Mapping[str, Any]) -> Shape:
    """Make the shape that lends the candidates their blocks: pre-norm, rotary, SwiGLU."""
    return Shape.of(d_model=1024, n_layers=8, n_heads=8, vocab_size=held["vocab_sizes"][0], tied=held["tied"][0])


def _hold(axes: Mapping[str, Axis], base: Shape | None) -> dict[str, Any]:
    """Take each axis at the runs' own values: the only one, or those they varied; of silent runs, the base's."""
    ff, kv, vocab, tied, stored = (axes.get(n) for n in ("ff_ratio", "kv_ratio", "vocab_size", "tied", "sharing"))
    like = base or Shape.of(d_model=1536, n_layers=8, n_heads=12, vocab_size=50432)
    return {
        "ff_ratios": (like.d_ff / like.d_model,) if ff is None else _between(ff, FF_RATIOS, rounding=VARIED),
        "kv_ratios": (like.n_kv_heads / like.n_heads,) if kv is None else _between(kv, KV_RATIOS),
        "vocab_sizes": (like.vocab_size,) if vocab is None else tuple(round(v) for v in _between(vocab, ())),
        "tied": (like.tied,) if tied is None else tuple(sorted({bool(tied.low), bool(tied.high)})),
        "sharing_counts": (1,) if stored is None else tuple(sorted({round(1 / stored.high), round(1 / stored.low)})),
    }


def _between(axis: Axis, usual: tuple[float, ...], *, rounding: float = 1.0 + 1e-9) -> tuple[float, ...]:
    """List the ends of a varied axis and the usual values between; the lower end of one spread by rounding alone."""
    if axis.high <= rounding * axis.low:
        return (axis.low,)
    return tuple(sorted({axis.low, axis.high, *(value for value in usual if axis.low < value < axis.high)}))


def find_departures(found: Candidates, space: Space, axes: Mapping[str, Axis]) -> dict[str, np.ndarray]:
    """Mark, for each assumed axis, the candidates that leave what the fitted runs had: no data speaks for them."""
    held, at = _hold(axes, space.base), found.columns
    kv = _range(axes.get("kv_ratio"), held["kv_ratios"])
    vocab = _range(axes.get("vocab_size"), held["vocab_sizes"])
    tied = _range(axes.get("tied"), held["tied"])
    shared = held["sharing_counts"]
    narrow, wide = min(held["ff_ratios"]), max(held["ff_ratios"])
    left = {
        "ff_ratio": (at["d_ff"] < narrow * at["d_model"] - 1) | (at["d_ff"] > _round_ff(wide * at["d_model"], space)),
        "kv_ratio": _outside(at["n_kv_heads"] / at["n_heads"], *kv),
        "vocab_size": _outside(at["vocab_size"], *vocab),
        "tied": _outside(at["tied"], *tied),
        "sharing": _outside(at["sharing_count"], min(shared), max(shared)),
    }
    return {name: left[name] for name in FREE if name in space.assumed}


def _range(axis: Axis | None, held: tuple[float, ...]) -> tuple[float, float]:
    return (min(held), max(held)) if axis is None else (axis.low, axis.high)


def _outside(value_n: np.ndarray, low: float, high: float) -> np.ndarray:
    return (value_n < low - 1e-6) | (value_n > high + 1e-6)


def _mark_first(values_wc: np.ndarray) -> np.ndarray:
    """Mark in each row the first of equal values: two ratios may round to one number."""
    return np.array([[value not in row[:at] for at, value in enumerate(row)] for row in values_wc.tolist()])


def _round_ff(d_ff: Any, space: Space) -> Any:
    return np.ceil(np.floor(d_ff + 1e-6) / space.ff_multiple) * space.ff_multiple


def candidates(space: Space, *, references: bool = True) -> Candidates:
    """Enumerate every aligned shape of a space, with the published shapes that lie in its held axes as marked rows.

    Raises BudgetError when nothing is left.
    """
    d_head_of = {d: next((h for h in space.d_heads if d % h == 0), 0) for d in space.d_models}
    widths = np.array([d for d in sorted(d_head_of) if d_head_of[d] and d // d_head_of[d] % space.tensor_parallel == 0])
    if not len(widths):
        raise BudgetError(
            f"no width of {space.d_models[0]}…{space.d_models[-1]} is a multiple of a head dim in {space.d_heads} with"
            f" heads that {space.tensor_parallel} devices can share; add widths or head dims"
        )
    heads_w = widths // np.array([d_head_of[d] for d in widths.tolist()])
    kv_wk = np.maximum(np.rint(np.outer(heads_w, space.kv_ratios)), 1)
    ff_wf = _round_ff(np.outer(widths, space.ff_ratios), space)
    n, shared = np.array(space.n_layers), np.array(space.sharing_counts)
    kept_wk = _mark_first(kv_wk) & (heads_w[:, None] % kv_wk == 0) & (kv_wk % space.tensor_parallel == 0)
    kept_ns = n[:, None] % shared == 0
    # Axes: width, depth, KV ratio, d_ff ratio, vocabulary, tying, sharing.
    kept = kept_wk[:, None, :, None, None, None, None] & kept_ns[:, None, None, None, None, :]
    kept = kept & _mark_first(ff_wf)[:, None, None, :, None, None, None]
    full = (*kept.shape[:4], len(space.vocab_sizes), len(space.tied), kept.shape[6])
    w, i, k, f, v, e, s = np.nonzero(np.broadcast_to(kept, full))
    columns = {
        "d_model": widths[w], "n_layers": n[i], "n_heads": heads_w[w], "n_kv_heads": kv_wk[w, k],
        "d_head": (widths // heads_w)[w], "d_ff": ff_wf[w, f], "vocab_size": np.array(space.vocab_sizes)[v],
        "tied": np.array(space.tied)[e], "sharing_count": shared[s],
    }  # fmt: skip
    rows = {name: c.astype(bool if name == "tied" else np.float64, copy=False) for name, c in columns.items()}
    freed = tuple(axis for axis, name in AXIS_FIELDS.items() if len(getattr(space, name)) > 1)
    found = Candidates(base=space.base, columns=rows, freed=freed)
    found = _add_references(found, space) if references else found
    if not len(found):
        raise BudgetError("no shape of this space fits together; widen it")
    return found


def _add_references(found: Candidates, space: Space) -> Candidates:
    """Append the published shapes whose held axes are the space's own."""
    added: dict[str, Shape] = {}
    for name, preset in shape_presets().items():
        s = preset.shape
        if (
            s.vocab_size in space.vocab_sizes
            and s.tied in space.tied
            and s.sharing_count in space.sharing_counts
            and s.sharing in ("none", _pattern(space.base))
            and s.mlp == space.base.mlp
            and any(abs(s.n_kv_heads / s.n_heads - k) < 1e-6 for k in space.kv_ratios)
            and any(-1e-6 <= s.d_ff - f * s.d_model + 1 <= space.ff_multiple + 1 for f in space.ff_ratios)
            and s.d_head * s.n_heads == s.d_model
            and s not in added.values()
        ):
            added[name] = s
    if not added:
        return found
    more = {name: np.array([getattr(s, name) for s in added.values()]) for name in COLUMNS}
    columns = {name: np.concatenate([v, more[name].astype(v.dtype)]) for name, v in found.columns.items()}
    rows = {len(found) + i: name for i, name in enumerate(added)}
    return Candidates(base=found.base, columns=columns, references=rows, freed=found.freed)
