"""Hold what an evaluation found: of every item, of tasks, of suites of them, and of held-out text.

Log-probabilities are in nats and summed over a text's tokens. A standard error is None where a single value leaves it
unknown; none is ever put at zero for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lathe.errors import EvaluationError
from lathe.evals.tasks import Average
from lathe.shape import Shape

ScoreName = Literal["accuracy", "centred"]
Way = Literal["windows", "strided", "documents"]
Interval = tuple[float, float]

ROUNDING = 1e-3
"""How far above 0 a log-probability in fp32 may come by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """Hold what a model made of one item: of each option its log-probability, tokens and score.

    `scores` are the log-probabilities as the task normalises them; `pick` is the option of the highest, the first of
    equals. With a single option or none, `correct` says whether the text came out right. `number` is the item's line in
    its file, `cut` the most tokens left out on the left of an option, and `text` what was generated.
    """

    number: int
    gold: int
    pick: int
    correct: bool
    log_probs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    cut: int = 0
    category: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        where, options = f"item {self.number}", len(self.log_probs)
        _check_counts(self, "gold", "pick", "cut", where=where)
        if self.number < 1:
            raise EvaluationError(f"{where}: items are numbered from 1")
        if not options == len(self.tokens) == len(self.scores):
            raise EvaluationError(
                f"{where} has {options} log-probabilities, {len(self.tokens)} counts of tokens and {len(self.scores)} "
                "scores; each option has one of each"
            )
        if wrong := [x for x in (*self.log_probs, *self.scores) if not math.isfinite(x)]:
            raise EvaluationError(f"{where} has a log-probability or score of {wrong[0]}; look for NaN in the logits")
        if (highest := max(self.log_probs, default=0.0)) > ROUNDING:
            raise EvaluationError(f"{where} has a log-probability of {highest:g}; none is above 0")
        if max(self.gold, self.pick) >= max(options, 1):
            raise EvaluationError(f"{where} has {options} options, and gold={self.gold}, pick={self.pick} from 0")
        best = self.scores.index(max(self.scores)) if options > 1 else self.pick
        if options > 1 and (self.pick, self.correct) != (best, best == self.gold):
            raise EvaluationError(
                f"{where}: pick={self.pick}, correct={self.correct} do not follow from gold={self.gold} and the scores "
                f"{self.scores}"
            )

    @property
    def gold_log_prob(self) -> float | None:
        """Give the right answer's log-probability; None for an item without options."""
        return self.log_probs[self.gold] if self.log_probs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryResult:
    """Hold the accuracy on the items of one category."""

    items: int
    accuracy: float
    se: float | None

    def __post_init__(self) -> None:
        _check_share(self, "accuracy", where="a category")
        _check_positive(self, "se", where="a category")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Hold a task's accuracy over its items, or over its categories as `average` says, and what was asked.

    `centred` is (accuracy − chance) / (1 − chance). `log_prob` is the right answer's, always averaged over items; None
    for a task without options. `cut` counts the items that were too long, `content` is the SHA-256 of the questions
    as they were asked.
    """

    task: str
    kind: str
    items: int
    shots: int
    seed: int
    normalisation: str
    chance: float
    accuracy: float
    se: float | None
    centred: float
    centred_se: float | None
    log_prob: float | None = None
    log_prob_se: float | None = None
    categories: dict[str, CategoryResult] = field(default_factory=dict)
    cut: int = 0
    content: str
    average: Average = "items"

    def __post_init__(self) -> None:
        where = f"task {self.task!r}"
        _check_counts(self, "shots", "cut", where=where)
        _check_share(self, "accuracy", where=where)
        _check_positive(self, "se", "centred_se", "log_prob_se", where=where)
        if self.items < 1:
            raise EvaluationError(f"{where} has no items; a result is of one or more")
        if not math.isclose(self.centred, centre(self.accuracy, self.chance), abs_tol=1e-9):
            raise EvaluationError(
                f"{where}: centred={self.centred:g} is not (accuracy − chance) / (1 − chance) of "
                f"{self.accuracy:g} and {self.chance:g}"
            )
        if self.cut > self.items or sum(c.items for c in self.categories.values()) > self.items:
            raise EvaluationError(f"{where} has more items cut, or in categories, than its {self.items}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """Hold the mean loss on a split, or on its part from one source, in nats per token, with 95 % intervals.

    The intervals are bootstrapped, over sequences and over tokens. `way` says how text was cut into sequences of
    `seq_len` tokens, `stride` by how many a window moves on; `cut` counts tokens that were left out.
    """

    dataset: str
    split: str
    source: str | None = None
    loss: float
    se: float | None
    perplexity: float
    bits_per_byte: float | None = None
    tokens: int
    sequences: int
    interval_sequences: Interval | None = None
    interval_tokens: Interval | None = None
    way: Way = "windows"
    seq_len: int
    stride: int | None = None
    cut: int = 0

    def __post_init__(self) -> None:
        where = f"the loss on {self.dataset!r}"
        _check_counts(self, "tokens", "sequences", "seq_len", "stride", "cut", where=where)
        _check_positive(self, "loss", "se", "bits_per_byte", where=where)
        if not math.isclose(self.perplexity, math.exp(self.loss), rel_tol=1e-6):
            raise EvaluationError(f"{where}: perplexity={self.perplexity:g} is not exp({self.loss:g})")
        for low, high in filter(None, (self.interval_sequences, self.interval_tokens)):
            if not low <= high:
                raise EvaluationError(f"{where}: the interval {low:g} to {high:g} runs backwards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Hold the mean accuracy or centred accuracy of a suite's tasks; no value while any of them is missing.

    `chance` holds the accuracies of guessing that it is centred on, where not the tasks' own.
    """

    name: str
    score: ScoreName
    value: float | None
    se: float | None
    members: tuple[str, ...]
    missing: tuple[str, ...] = ()
    chance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"aggregate {self.name!r}"
        if others := self.chance.keys() - set(self.members):
            raise EvaluationError(f"{where} has a chance of {min(others)!r}, which is no member")
        _check_positive(self, "se", where=where)
        if not self.members or len(set(self.members)) < len(self.members) or set(self.missing) - set(self.members):
            raise EvaluationError(f"{where} should name its members, each once, and miss none but them")
        if bool(self.missing) != (self.value is None):
            raise EvaluationError(
                f"{where}: value={self.value} with {len(self.missing)} members missing; it has a value when none is"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Hold what a checkpoint scored. `created` is a date and time, ISO 8601."""

    checkpoint: str
    shape: Shape | None = None
    recipe_id: str | None = None
    dtype: str
    device: str
    backend: str
    losses: tuple[LossResult, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    created: str

    def __post_init__(self) -> None:
        for what, names in (("task", [t.task for t in self.tasks]), ("aggregate", [a.name for a in self.aggregates])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise EvaluationError(f"the evaluation of {self.checkpoint} has the {what} {twice[0]!r} twice")

    @property
    def accuracies(self) -> dict[str, float]:
        """Give the accuracy of each task, as a `Run` holds them."""
        return {task.task: task.accuracy for task in self.tasks}


def centre(accuracy: float, chance: float) -> float:
    """Put accuracy on the scale where guessing is 0 and perfection 1. Raises EvaluationError."""
    if not 0 <= chance < 1:
        raise EvaluationError(f"chance={chance} should be at least 0 and below 1")
    return (accuracy - chance) / (1 - chance)


def _check_counts(word: Any, *names: str, where: str) -> None:
    for name in names:
        value = getattr(word, name)
        if value is not None and (type(value) is not int or value < 0):
            raise EvaluationError(f"{where}: {name}={value!r} should be a whole number of at least 0")


def _check_positive(word: Any, *names: str, where: str) -> None:
    for name in names:
        value = getattr(word, name)
        if value is not None and not 0 <= value < math.inf:
            raise EvaluationError(f"{where}: {name}={value} should be finite and at least 0")


def _check_share(word: Any, name: str, *, where: str) -> None:
    value = getattr(word, name)
    if not 0 <= value <= 1:
        raise EvaluationError(f"{where}: {name}={value} should be from 0 to 1")
