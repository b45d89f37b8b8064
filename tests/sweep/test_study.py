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


def test_paths_are_beside_the_file_whether_they_are_there_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of presets stay as they are; a folder of the same name where the command is called does not count."""
    (tmp_path / "eval").mkdir()
    monkeypatch.chdir(tmp_path)
    study = load_study(
        write_study(
            tmp_path / "deep",
            ('inputs = ["text.jsonl"]', 'dataset = "data"'),
            ("continuations = 6", 'tasks = ["copa"]\nfolder = "eval"'),
            ("seq_len = 16\nb", 'data = "data"\n"init.checkpoint" = "first"\ninit.base = "gpt2"\nseq_len = 16\nb'),
            ("[launch]", '[training]\ndata.validation = {wiki = "wiki"}\n[launch]'),
        )
    )  # fmt: skip
    assert study.text is not None
    assert study.grid is not None
    base = study.grid["base"]
    assert study.text.dataset == base["data"] == str(tmp_path / "deep/data")
    assert base["init.checkpoint"] == str(tmp_path / "deep/first")
    assert base["init"] == {"base": "gpt2"}
    assert study.training == {"data": {"validation": {"wiki": str(tmp_path / "deep/wiki")}}}
    assert study.evaluate.folder == str(tmp_path / "deep/eval")
    assert study.device.preset == "a100-40gb"


def test_items_of_tasks_are_beside_the_file_if_nothing_says_where(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "deep", ("continuations = 6", 'tasks = ["copa"]')))
    assert study.evaluate.folder == str(tmp_path / "deep")


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
