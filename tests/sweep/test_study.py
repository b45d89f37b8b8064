from pathlib import Path

import pytest
from small_studies import write_study

from lathe import codec
from lathe.errors import CodecError, StudyError
from lathe.sweep.study import Study, load_study


def test_a_study_survives_being_written(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    codec.save(study, tmp_path / "study.json", kind="study")
    assert codec.load(Study, tmp_path / "study.json", kind="study") == study


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "deep"))
    assert study.text is not None
    assert study.text.inputs == (str(tmp_path / "deep/text.jsonl"),)


def test_the_quickstart_is_a_study() -> None:
    study = load_study("quickstart")
    assert study.name == "quickstart"
    assert study.text is not None
    assert study.text.builtin


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (('name = "small"', 'nane = "small"'), CodecError, "unknown key 'nane'; did you mean 'name'"),
        (("top = 2", "tops = 2"), CodecError, "unknown key 'plan.tops'; did you mean 'top'"),
        (("tokens = 3840", 'tokens = "many"'), CodecError, "plan.tokens"),
        (('inputs = ["text.jsonl"]', ""), CodecError, "gives no text"),
        (('inputs = ["text.jsonl"]', 'inputs = ["text.jsonl"]\nbuiltin = true'), CodecError, "inputs and builtin"),
        (('[law]', '[law]\nruns = "morph-2025"'), CodecError, "the law comes from both"),
        (("stop = 40", "stop = 4"), CodecError, "is no span"),
    ],
)  # fmt: skip
def test_bad_studies(tmp_path: Path, change: tuple[str, str], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_study(write_study(tmp_path, change))


def test_an_unknown_name() -> None:
    with pytest.raises(StudyError, match="there is no study 'quickstrat'; did you mean 'quickstart'"):
        load_study("quickstrat")
