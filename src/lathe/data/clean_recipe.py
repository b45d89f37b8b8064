"""Say how a corpus is cleaned: the steps, in order, as one TOML document.

    language = "plain"              # how words and sentences are told apart: plain, or a language such as en

    [[steps]]
    step = "gopher-quality"         # a name of STEPS; its keys are the fields of that step's word
    min_doc_words = 50

    [[steps]]
    step = "near-duplicates"

Fields are called what datatrove calls them, so that its documentation applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lathe import codec
from lathe.documents import read_document
from lathe.errors import CodecError, DataError, nearest

PLAIN_WORDS = "plain"
"""The `language` of text with spaces between words: split there and at punctuation, forty times as fast as by spaCy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherQuality:
    """Keep pages by counts of words, their mean length, symbols, bullets, ellipses and stop words."""

    min_doc_words: int = 50
    max_doc_words: int = 100_000
    min_avg_word_length: float = 3
    max_avg_word_length: float = 10
    max_symbol_word_ratio: float = 0.1
    max_bullet_lines_ratio: float = 0.9
    max_ellipsis_lines_ratio: float = 0.3
    max_non_alpha_words_ratio: float = 0.8
    """Despite its name, the smallest share of words with a letter."""
    min_stop_words: int = 2
    stop_words: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherRepetition:
    """Remove pages that repeat lines, paragraphs or n-grams; (n, largest share of characters) for the latter."""

    dup_line_frac: float = 0.3
    dup_para_frac: float = 0.3
    dup_line_char_frac: float = 0.2
    dup_para_char_frac: float = 0.2
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class C4Quality:
    """Remove lines without an end mark or with a site's boilerplate, and pages of too few sentences."""

    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class C4Paragraphs:
    """Keep pages with three paragraphs of 200 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadWords:
    """Remove pages with a word or phrase of a list, a line each in the file `words`; C4's English list by default."""

    words: str | None = None
    keep_fraction: float = 0.0
    between_words: bool = True
    """Whether a match must begin and end with a word; false for languages without spaces."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FineWebQuality:
    """Remove pages of lists, of short lines, and of lines that repeat or end without a mark."""

    line_punct_thr: float = 0.12
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Keep pages of some languages, as a fastText model names them; `model` is its file."""

    languages: tuple[str, ...] = ("en",)
    language_threshold: float = 0.65
    backend: Literal["ft176", "glotlid"] = "ft176"
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """Keep pages that a fastText classifier's file gives one of its labels with at least a score."""

    model: str
    keep_labels: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """Remove pages by the document's `url`: blocked domains, and words in it. Pages without one stay."""

    soft_word_threshold: int = 2
    extra_domains: tuple[str, ...] | None = None
    extra_urls: tuple[str, ...] | None = None
    use_integrated_lists: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Regex:
    """Remove pages in which a regular expression is found."""

    regex_exp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Take out a page's leftovers line by line, and remove pages that had more than a share of words in them."""

    max_removed_ratio: float = 0.05
    max_upper_ratio: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactDuplicates:
    """Keep one of documents with the same text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicates:
    """Keep one of documents that share most n-grams of words (MinHash).

    A pair whose n-gram sets overlap by s (Jaccard) is found with probability 1 − (1 − s^hashes_per_bucket)^num_buckets.
    The defaults find 98 % at s = .63, which is one changed word in twenty, and .04 % at s = .1; FineWeb's 14 buckets of
    8 find 30 % there. Each of num_buckets · hashes_per_bucket hashes takes 8 bytes a document on disk while it runs.
    """

    n_grams: int = 5
    num_buckets: int = 40
    hashes_per_bucket: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("n_grams", "num_buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise DataError(f"near-duplicates: {name}={getattr(self, name)}; wanted 1 or more")


Step = (
    GopherQuality | GopherRepetition | C4Quality | C4Paragraphs | BadWords | FineWebQuality
    | Language | Classifier | Url | Regex | Lines | ExactDuplicates | NearDuplicates
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKind:
    """Say which class carries a step out, whether it is told the language, and where the step was described.

    `makes` is None for the duplicates, which take several passes over the corpus.
    """

    word: type[Step]
    makes: str | None
    words: bool = False
    source: str


FILTERS, OURS = "datatrove.pipeline.filters", "lathe.data.clean_steps"
STEPS: dict[str, StepKind] = {
    "url": StepKind(word=Url, makes=f"{OURS}:UrlStep", source="FineWeb, arXiv:2406.17557"),
    "language": StepKind(word=Language, makes=f"{OURS}:LanguageStep", source="RefinedWeb, arXiv:2306.01116"),
    "gopher-repetition": StepKind(
        word=GopherRepetition, makes=f"{FILTERS}:GopherRepetitionFilter", words=True,
        source="Rae et al. 2021, arXiv:2112.11446, table A1",
    ),
    "gopher-quality": StepKind(
        word=GopherQuality, makes=f"{FILTERS}:GopherQualityFilter", words=True,
        source="Rae et al. 2021, arXiv:2112.11446, A.1.1",
    ),
    "c4-quality": StepKind(
        word=C4Quality, makes=f"{FILTERS}:C4QualityFilter", words=True, source="Raffel et al. 2020, arXiv:1910.10683"
    ),
    "c4-paragraphs": StepKind(word=C4Paragraphs, makes=f"{FILTERS}:C4ParagraphFilter", source="mC4, arXiv:2010.11934"),
    "bad-words": StepKind(word=BadWords, makes=f"{OURS}:BadWordsStep", source="Raffel et al. 2020, arXiv:1910.10683"),
    "fineweb-quality": StepKind(
        word=FineWebQuality, makes=f"{FILTERS}:FineWebQualityFilter", words=True, source="FineWeb, arXiv:2406.17557"
    ),
    "classifier": StepKind(word=Classifier, makes=f"{OURS}:ClassifierStep", source="DCLM, arXiv:2406.11794"),
    "regex": StepKind(word=Regex, makes=f"{FILTERS}:RegexFilter", source="datatrove"),
    "lines": StepKind(word=Lines, makes=f"{OURS}:LinesStep", source="RefinedWeb, arXiv:2306.01116, G.2"),
    "exact-duplicates": StepKind(word=ExactDuplicates, makes=None, source="datatrove"),
    "near-duplicates": StepKind(word=NearDuplicates, makes=None, source="Broder 1997; FineWeb, arXiv:2406.17557"),
}  # fmt: skip
"""What a cleaning step may be, by its name in a recipe."""
NAMES: dict[type[Step], str] = {kind.word: name for name, kind in STEPS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Say how Slurm runs the jobs. `time` is the limit of one task, hh:mm:ss; `venv` a virtual environment's folder."""

    partition: str
    time: str
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    workers: int | None = None
    """How many tasks may run at once; None for no limit."""
    venv: str | None = None
    sbatch_args: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    """Say what a task asks of the Ray cluster."""

    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 4
    workers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRecipe:
    """Hold the steps, in order, and what the cluster executors need to know.

    `language` says how words are told apart: `plain`, or a code that datatrove has a tokenizer for, such as `en`
    (spaCy) or `th`. The default steps need nothing from the network.
    """

    steps: tuple[Step, ...] = (GopherQuality(), GopherRepetition(), ExactDuplicates(), NearDuplicates())
    language: str = PLAIN_WORDS
    slurm: Slurm | None = None
    ray: Ray = Ray()

    def __post_init__(self) -> None:
        if not self.steps:
            raise DataError(f"a recipe without steps cleans nothing; add [[steps]], step = …: {', '.join(STEPS)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Number and name each step, as folders and reports do."""
        return tuple(f"{i:02d}-{NAMES[type(step)]}" for i, step in enumerate(self.steps, start=1))


def load_recipe(path: str | Path) -> CleanRecipe:
    """Read a recipe from TOML or JSON. Raises CodecError with the step and key at fault."""
    body = codec.untag(read_document(path), kind="clean-recipe", source=str(path), required=False)
    return decode_recipe(body, source=str(path))


def decode_recipe(body: Mapping[str, Any], *, source: str) -> CleanRecipe:
    """Build a recipe from what `encode_recipe` gives. Raises CodecError."""
    steps = body.get("steps")
    if not isinstance(steps, list):
        raise CodecError(f"{source}: wanted one [[steps]] or more, each with step = one of {', '.join(STEPS)}")
    words = tuple(_decode_step(step, source=f"{source}: steps[{i}]") for i, step in enumerate(steps, start=1))
    types = {"language": str, "slurm": Slurm | None, "ray": Ray}
    for name in body:
        if name not in (*types, "steps"):
            raise CodecError(f"{source}: unknown key {name!r}{nearest(name, (*types, 'steps'))}")
    given = {name: value for name, value in body.items() if name in types}
    decoded = {n: codec.decode(types[n], v, source=f"{source}: {n}") for n, v in given.items()}  # pyright: ignore
    try:
        return CleanRecipe(steps=words, **decoded)
    except DataError as error:
        raise CodecError(f"{source}: {error}") from None


def encode_recipe(recipe: CleanRecipe) -> dict[str, Any]:
    """Turn a recipe into what JSON can hold."""
    steps = [{"step": NAMES[type(step)], **codec.encode(step)} for step in recipe.steps]
    cluster = {"slurm": codec.encode(recipe.slurm), "ray": codec.encode(recipe.ray)}
    return {"language": recipe.language, "steps": steps, **cluster}


def _decode_step(body: Any, *, source: str) -> Step:
    if not isinstance(body, dict) or not isinstance(body.get("step"), str):
        raise CodecError(f"{source}: wanted a table with step = one of {', '.join(STEPS)}")
    name = body["step"]
    if name not in STEPS:
        raise CodecError(f"{source}: there is no step {name!r}{nearest(name, STEPS)}")
    return codec.decode(
        STEPS[name].word, {k: v for k, v in body.items() if k != "step"}, source=f"{source} ({name})"
    )  # fmt: skip
