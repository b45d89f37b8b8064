"""The reference page is what the code says, and says something of everything."""

import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_reference.py"))


def test_the_page_is_what_the_code_says(reference: dict[str, Any]) -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert reference["make_reference"]() == page, "run python docs/make_reference.py"


def test_every_option_is_explained(reference: dict[str, Any]) -> None:
    for name, function in reference["list_commands"]():
        for option in reference["list_options"](function):
            assert option.about, f"lathe {name} {option.shown}"


def test_every_key_of_a_study_is_explained(reference: dict[str, Any]) -> None:
    for section in reference["STUDY"]:
        text = reference["read_doc"](section.word).text
        for key, _, _, about in reference["list_keys"](section.word, like=section.like):
            assert about or key in text, f"{section.title} {key}"


def test_what_the_page_shows_is_readable() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert " object at 0x" not in page
    assert "<class" not in page
    assert "typing." not in page
