"""Steps that datatrove lacks, or whose datatrove form asks the network, in its own interfaces.

This module needs datatrove; import it inside functions.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from typing import Any

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.filters import C4BadWordsFilter, FastTextClassifierFilter, LanguageFilter, URLFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.lid import FastTextLID
from datatrove.utils.logging import setup_default_logger
from datatrove.utils.word_tokenizers import WordTokenizer, simple_span_tokenize
from loguru import logger

from lathe.errors import DataError


class PlainWords(WordTokenizer):
    """Split words at spaces and punctuation, and sentences after an end mark."""

    word = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
    end = re.compile(r"(?<=[.!?…])[\"'’”)]*\s+")

    def word_tokenize(self, text: str) -> list[str]:
        return self.word.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [part.strip() for part in self.end.split(text) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return list(simple_span_tokenize(text, self.sent_tokenize(text)))


PLAIN = PlainWords()


class FileLanguages(FastTextLID):
    """Name languages with a model's file that is already here."""

    def __init__(self, languages: list[str], *, path: str) -> None:
        super().__init__(languages)
        self.path = path

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = load_fasttext(self.path)
        return self._model


def load_fasttext(path: str) -> Any:
    """Load a fastText model's file."""
    from fasttext.FastText import _FastText  # pyright: ignore

    try:
        return _FastText(path)
    except ValueError as error:
        raise DataError(f"{path} is no fastText model: {error}") from None


class LanguageStep(LanguageFilter):
    """Keep languages, without datatrove's download."""

    def __init__(
        self, *, languages: tuple[str, ...], language_threshold: float, backend: Any, model: str, exclusion_writer: Any
    ) -> None:
        super().__init__(list(languages), language_threshold, exclusion_writer, backend=backend)
        self.model = FileLanguages(list(languages), path=model)


class ClassifierStep(FastTextClassifierFilter):
    """Keep labels, with the model where it lies: datatrove would copy it to its cache and read that copy ever after."""

    def __init__(self, *, model: str, keep_labels: tuple[tuple[str, float], ...], exclusion_writer: Any) -> None:
        super().__init__(model, list(keep_labels), exclusion_writer=exclusion_writer, newline_replacement=" ")

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = load_fasttext(self.model_url)
            known = [label.removeprefix("__label__") for label in self._model.labels]
            for label, _ in list[Any](self.keep_labels or ()):
                if label not in known:
                    raise DataError(f"{self.model_url} has no label {label!r}; it has {', '.join(known)[:200]}")
        return self._model


class BadWordsStep(C4BadWordsFilter):
    """Remove pages by a list that is already here, whatever their language."""

    def __init__(
        self, *, words: str, keep_fraction: float, between_words: bool, seed: int, exclusion_writer: Any
    ) -> None:
        super().__init__(keep_fraction, seed=seed, exclusion_writer=exclusion_writer)
        with open(words, encoding="utf-8") as file:
            listed = sorted({line.strip().lower() for line in file if line.strip()})
        any_of = "|".join(map(re.escape, listed)) or r"(?!)"
        self.pattern = re.compile(rf"(?<!\w)(?:{any_of})(?!\w)" if between_words else any_of)

    def _get_badwords(self, lang: str) -> re.Pattern[str]:
        return self.pattern


class UrlStep(URLFilter):
    """Filter by address, with the public suffixes that come with tldextract, and keeping pages without an address."""

    def __init__(
        self, *, soft_word_threshold: int, extra_domains: Any, extra_urls: Any, use_integrated_lists: bool,
        exclusion_writer: Any,
    ) -> None:  # fmt: skip
        from tldextract import TLDExtract  # pyright: ignore[reportMissingImports]

        super().__init__(
            soft_word_threshold, extra_domains, extra_urls, use_integrated_lists=use_integrated_lists,
            exclusion_writer=exclusion_writer,
        )  # fmt: skip
        self.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if not document.metadata.get("url"):
            self.stat_update("without_url")
            return True
        return super().filter(document)


COUNTED = "likes?|shares?|comments?|views?|followers?|retweets?|reposts?|replies|votes?|upvotes?|downloads?|bookmarks?"
LEFTOVERS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\W*(sign|log)[ -]?(in|up|out)\b",
        r"\b(read|show|see|load) (more|all)\W*$",
        r"\bitems? in (your |the )?(cart|basket)\b",
    )
)
"""What a short line of a page's frame says: at its start, at its end, anywhere."""
SHORT_WORDS = 10


class LinesStep(BaseFilter):
    """Take out lines of capitals, of numbers, of counters, of one word, and short ones of a page's frame.

    RefinedWeb's line-wise corrections (Penedo et al. 2023, arXiv:2306.01116, G.2), which DCLM keeps: beyond a share of
    the words in such lines the page goes. The patterns are ours.
    """

    name = "✂ Lines"
    counter = re.compile(rf"^\W*\d[\d.,]*\s*[kmb]?\s+({COUNTED})\W*$", re.IGNORECASE)

    def __init__(self, *, max_removed_ratio: float, max_upper_ratio: float, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.max_removed_ratio, self.max_upper_ratio = max_removed_ratio, max_upper_ratio

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        lines = doc.text.split("\n")
        kept = [line for line in lines if not self._is_leftover(line)]
        if len(kept) == len(lines):
            return True
        before, after = len(doc.text.split()), sum(len(line.split()) for line in kept)
        if after == 0:
            return False, "nothing_left"
        if (before - after) / before > self.max_removed_ratio:
            return False, "too_many_lines_removed"
        self.stat_update("edited")
        doc.text = "\n".join(kept)
        return True

    def _is_leftover(self, line: str) -> bool:
        words = line.split()
        if not words:
            return False
        letters = [c for c in line if c.isalpha()]
        return (
            len(words) == 1
            or not letters
            or sum(c.isupper() for c in letters) > self.max_upper_ratio * len(letters)
            or self.counter.search(line) is not None
            or (len(words) <= SHORT_WORDS and any(pattern.search(line) for pattern in LEFTOVERS))
        )


class QuietExecutor(LocalPipelineExecutor):
    """Run tasks here; what they say goes to their log files only."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove.executor")  # it prints each task's traceback, and the error reaches us anyway
        try:
            with redirect_stderr(io.StringIO()):  # its progress bars have no switch
                return super()._run_for_rank(rank, max(1, local_rank), node_rank)
        finally:
            setup_default_logger()

    def run(self) -> Any:
        logger.disable("datatrove.executor")
        try:
            return super().run()
        finally:
            logger.enable("datatrove.executor")
