"""Turn a recipe into datatrove's pipelines, and check beforehand that they will find what they need.

Filters run in one pass. Each duplicate step ends the pass: it writes what is left, looks over all of it in passes of
its own, and starts the next pass, which drops what they found. This module needs datatrove; import it inside functions.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import StanzaTokenizer, load_word_tokenizer

from lathe.data.clean_io import READERS, DocumentWriter, JsonlFiles
from lathe.data.clean_recipe import (
    NAMES,
    PLAIN_WORDS,
    STEPS,
    BadWords,
    Classifier,
    CleanRecipe,
    ExactDuplicates,
    Language,
    NearDuplicates,
    Step,
)
from lathe.data.clean_steps import PLAIN
from lathe.errors import DataError

HASH = HashConfig(hash_fc="sha1")
"""Not datatrove's default, xxhash: it hands it strings, which xxhash 4 refuses."""
OnBadLine = Literal["fail", "skip"]
Compression = Literal[".gz", ".zst", ""]
LANGUAGE_MODELS = {
    "ft176": "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.bin",
    "glotlid": "https://huggingface.co/cis-lmu/glotlid/resolve/main/model_v3.bin",
}


BAD_WORDS = "https://raw.githubusercontent.com/LDNOOBW/List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words/master/en"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Hold one pass: its name, how many tasks share it, its pipeline, and the recipe's label of the steps that filter.

    `labels` maps a step's place in the pipeline to its label.
    """

    name: str
    tasks: int
    pipeline: list[PipelineStep]
    labels: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Name what lies where in the output's folder."""

    out: Path

    def work(self, *names: str) -> str:
        """Name a folder of what passes hand on."""
        return str(self.out.joinpath("work", *names))

    @property
    def cleaned(self) -> Path:
        """Name where the last pass writes, until it is whole."""
        return Path(self.work("documents"))

    @property
    def documents(self) -> Path:
        """Name where the cleaned documents end up."""
        return self.out / "documents"

    @property
    def logs(self) -> Path:
        """Name where each pass keeps its log and counts."""
        return self.out / "logs"

    def removed(self, label: str) -> Path:
        """Name where a step's removed documents are kept."""
        return self.out / "removed" / label


def build_stages(
    recipe: CleanRecipe,
    files: Sequence[Path],
    folders: Folders,
    *,
    tasks: int,
    text_key: str,
    on_bad_line: OnBadLine,
    compression: Compression,
) -> list[Stage]:
    """Lay a recipe out as passes, the first of which reads `files`.

    Raises DataError for a step whose package, model or list is not here, saying what to fetch and where to put it.
    """
    check_assets(recipe)
    language = find_words(recipe.language)
    stages: list[Stage] = []
    steps: list[PipelineStep] = _make_readers(files, folders, text_key=text_key, on_bad_line=on_bad_line)
    labels: dict[int, str] = {}
    for label, step in zip(recipe.labels, recipe.steps, strict=True):
        writer = DocumentWriter(str(folders.removed(label)), suffix=compression)
        if isinstance(step, ExactDuplicates | NearDuplicates):
            left = folders.work(label, "documents")
            steps.append(DocumentWriter(left, suffix=compression))
            stages.append(Stage(name=f"before-{label}", tasks=tasks, pipeline=steps, labels=labels))
            passes, dropping = _make_passes(step, label, folders, language, tasks, writer)
            stages += passes
            steps, labels = [JsonlFiles(left), dropping], {1: label}
        else:
            labels[len(steps)] = label
            steps.append(_make_filter(step, language, writer))
    steps.append(DocumentWriter(str(folders.cleaned), suffix=compression))
    return [*stages, Stage(name="last", tasks=tasks, pipeline=steps, labels=labels)]


def check_assets(recipe: CleanRecipe) -> None:
    """Refuse a step whose model or list is not on this machine. Raises DataError."""
    for step in recipe.steps:
        if isinstance(step, Language):
            model = Path(_find_files(step)["model"])
            _need_file(step, model, LANGUAGE_MODELS[step.backend], "or name it with model = …")
        elif isinstance(step, Classifier):
            _need_file(step, Path(step.model), None, "or correct model = …")
        elif isinstance(step, BadWords):
            _need_file(step, Path(_find_files(step)["words"]), BAD_WORDS, "or name a list with words = …")


def find_words(language: str) -> Any:
    """Find what splits a language into words. Raises DataError when its packages or model are not here."""
    if language == PLAIN_WORDS:
        return PLAIN
    try:
        found = load_word_tokenizer(language)
    except ValueError:
        raise DataError(
            f"datatrove has no tokenizer for language={language!r}; give a code such as 'en', 'de' or 'fra_Latn', or"
            f" {PLAIN_WORDS!r} to split at spaces and punctuation"
        ) from None
    except ImportError as error:
        raise DataError(f"language={language!r}: {error} Or give {PLAIN_WORDS!r}, which needs nothing") from None
    if isinstance(found, StanzaTokenizer):
        folder = Path(os.environ.get("STANZA_RESOURCES_DIR", Path.home() / "stanza_resources"))
        if not (folder / str(found.language)).is_dir():
            raise DataError(
                f"language={language!r} needs Stanza's model in {folder / str(found.language)}; where there is a"
                f" network, run stanza.download({found.language!r}, processors='tokenize'), or give {PLAIN_WORDS!r}"
            )
    return language


def _make_readers(
    files: Sequence[Path], folders: Folders, *, text_key: str, on_bad_line: OnBadLine
) -> list[PipelineStep]:
    """Make a reader for each kind of file; each yields what the one before it read, then its own."""
    readers: list[PipelineStep] = []
    for kind, make in READERS.items():
        chosen = [path.resolve() for path in files if kind in path.suffixes[-2:]]
        if not chosen:
            continue
        listed = folders.out / f"inputs{kind}.list"
        listed.write_text("".join(f"{path.relative_to('/')}\n" for path in chosen))
        reader = make("/", str(listed), text_key=text_key)
        if isinstance(reader, JsonlFiles):
            reader.on_bad_line = on_bad_line
        readers.append(reader)
    return readers


def _make_filter(step: Step, language: Any, writer: DocumentWriter) -> PipelineStep:
    kind = STEPS[NAMES[type(step)]]
    assert kind.makes is not None, "duplicates are no filter"
    module, name = kind.makes.split(":")
    given = {field.name: getattr(step, field.name) for field in fields(step)}
    given |= _find_files(step)
    if kind.words:
        given["language"] = language
    try:
        return getattr(importlib.import_module(module), name)(**given, exclusion_writer=writer)
    except ImportError as error:
        raise DataError(f"step {NAMES[type(step)]}: {error}") from None


def get_text(document: Document) -> str:
    """Give what exact duplicates have in common."""
    return document.text


def _make_passes(
    step: ExactDuplicates | NearDuplicates, label: str, folders: Folders, language: Any, tasks: int,
    writer: DocumentWriter,
) -> tuple[list[Stage], PipelineStep]:  # fmt: skip
    """Make the passes that look for duplicates, and the step that then drops them."""
    left, found = folders.work(label, "documents"), folders.work(label, "found")
    signatures = folders.work(label, "signatures")

    def stage(name: str, count: int, *pipeline: PipelineStep) -> Stage:
        return Stage(name=f"{label}-{name}", tasks=count, pipeline=list(pipeline), labels={})

    if isinstance(step, ExactDuplicates):
        config = ExactDedupConfig(content_getter=get_text, hash_config=HASH)
        return [
            stage("sign", tasks, JsonlFiles(left), ExactDedupSignature(signatures, config)),
            stage("find", 1, ExactFindDedups(signatures, found, config)),
        ], ExactDedupFilter(found, config, writer)
    near = MinhashConfig(
        n_grams=step.n_grams, num_buckets=step.num_buckets, hashes_per_bucket=step.hashes_per_bucket, seed=step.seed,
        hash_config=HASH,
    )  # fmt: skip
    pairs = folders.work(label, "pairs")
    return [
        stage("sign", tasks, JsonlFiles(left), MinhashDedupSignature(signatures, near, language)),
        stage("pair", step.num_buckets, MinhashDedupBuckets(signatures, pairs, config=near)),
        stage("cluster", 1, MinhashDedupCluster(pairs, found, near)),
    ], MinhashDedupFilter(found, writer)


def _find_files(step: Step) -> dict[str, str]:
    """Fill in where a step's files lie when the recipe does not say."""
    cache = Path.home() / ".cache" / "lathe"
    if isinstance(step, Language):
        return {"model": step.model or str(cache / LANGUAGE_MODELS[step.backend].rsplit("/", 1)[-1])}
    if isinstance(step, BadWords):
        return {"words": step.words or str(cache / "bad-words-en.txt")}
    return {}


def _need_file(step: Step, path: Path, address: str | None, otherwise: str) -> None:
    if not path.is_file():
        fetch = "" if address is None else f"; fetch {address} and put it there"
        raise DataError(f"step {NAMES[type(step)]} needs the file {path}, which is not there{fetch}, {otherwise}")
