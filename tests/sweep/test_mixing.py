"""A study of a mixture: what proxies teach, what follows from it, and what makes no mixture."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_studies import STUDY, WORDS

from lathe import codec
from lathe.data.build import build_dataset
from lathe.data.mixture import load_mixture
from lathe.data.readers import Layout, open_inputs
from lathe.data.tokenizer import train_tokenizer
from lathe.errors import CodecError, DataError, LawError, StudyError
from lathe.laws.importers import read_runs
from lathe.laws.mixture_table import read_mixture_table
from lathe.sweep.kept import Reached, read_stage
from lathe.sweep.mixing import make_mixture, mixture_content
from lathe.sweep.run import run_study
from lathe.sweep.study import Mixing, Study, load_study

MIXTURE = """
[mixture]
sources = {words = "words", noise = "noise"}
shape = {d_model = 16, n_layers = 1}
proxies = 6
tokens = 1280
target = "words"
"""
FASTER = (
    ("tokens = [640, 1280, 2560]", "tokens = [640, 1280]"),
    ("d_model = [8, 16, 32]", "d_model = [8, 32]"),
    ("tokens = 3840", "tokens = 1920"),
    ("continuations = 6", "continuations = 2"),
    ("top = 2", "top = 1"),
    ('name = "small"', 'name = "small"\nexport = "none"'),
)


def write_sources(folder: Path) -> None:
    """Write two datasets of one tokenizer: a few words again and again, and letters at random."""
    draw = random.Random(0)
    texts = {
        "words": [" ".join(draw.choices(WORDS[:4], k=80)) for _ in range(60)],
        "noise": ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=400)) for _ in range(30)],
    }
    for name, found in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    inputs = open_inputs([folder / f"{name}.jsonl" for name in texts], Layout())
    train_tokenizer(inputs, vocab_size=300, out=folder / "tokenizer.json")
    for name in texts:
        build_dataset(
            [folder / f"{name}.jsonl"], tokenizer=folder / "tokenizer.json", out=folder / name, held_out=0.05
        )  # fmt: skip


def write_mixed_study(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the small study, with a mixture in place of its text."""
    start, end = STUDY.index("[text]"), STUDY.index("[grid]\n")
    document = STUDY[:start] + MIXTURE + STUDY[end:]
    for old, new in (*FASTER, *changes):
        assert old in document
        document = document.replace(old, new)
    (folder / "study.toml").write_text(document)
    return folder / "study.toml"


def carry_out(study: Study, folder: Path, **asked: Any) -> list[str]:
    said: list[str] = []
    with pytest.raises(Reached):
        run_study(study, folder, report=said.append, live=False, **asked)
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sources, and carry the study out as far as its law."""
    home = tmp_path_factory.mktemp("mixed")
    write_sources(home)
    carry_out(load_study(write_mixed_study(home)), home / "out", until="law")
    return home


def test_noise_is_left_out(home: Path) -> None:
    mixture = load_mixture(home / "out/mixture.toml")
    assert mixture.sources == {name: str(home / name) for name in ("noise", "words")}
    assert mixture.weights["words"] > 0.8
    assert sum(mixture.weights.values()) == pytest.approx(1)
    stage = read_stage(home / "out", "mixture")
    assert stage is not None
    assert stage.result["weights"] == mixture.weights
    assert stage.result["loss"] < stage.result["reference"]
    assert stage.result["spearman"] > 0.5
    assert stage.cost.runs == 6


def test_the_table_of_proxies_is_what_they_trained_on(home: Path) -> None:
    table = read_mixture_table(home / "out/mixture/mixtures.csv")
    runs = read_runs(home / "out/mixture/runs.jsonl", validation="words")
    assert len(table["loss"]) == 6
    assert list(table["loss"]) == pytest.approx(list(runs["loss"]), rel=1e-12)
    drawn = [load_mixture(path).weights["words"] for path in sorted((home / "out/mixture/drawn").glob("*.toml"))]
    assert list(table["weight.words"]) == pytest.approx(drawn, rel=1e-12)


def test_all_that_follows_trains_on_it_and_is_held_out_on_every_source(home: Path) -> None:
    rows = [json.loads(line) for line in (home / "out/runs/runs.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert all({"loss_words", "loss_noise"} <= row.keys() for row in rows)
    recipe = json.loads(next((home / "out/runs").glob("*/recipe.json")).read_text())
    assert recipe["data"]["train"] == str(home / "out/mixture.toml")
    study = codec.load(Study, home / "out/study.json", kind="study")
    assert study.law.validation == "words"
    law = json.loads((home / "out/law.json").read_text())
    assert law["target"] == "loss"


def test_again_makes_nothing(home: Path) -> None:
    said = carry_out(load_study(home / "study.toml"), home / "out", until="law")
    assert said == [f"{name}: kept from before" for name in ("mixture", "sweep", "law")]


def test_to_the_end(home: Path) -> None:
    """Candidates are judged by the loss that the law is of; the sample and the questions are of all sources' text."""
    result = run_study(load_study(home / "study.toml"), home / "out", report=lambda line: None, live=False)
    for candidate in result.candidates:
        run = json.loads((home / "out" / candidate.folder / "run.json").read_text())
        assert candidate.true_loss == run["losses"]["words"]
        assert candidate.bits_per_byte is not None
    assert result.notes[0].startswith("the mixture is noise ")
    assert "the loss on words is predicted as" in result.notes[1]
    assert "mixture" in result.costs


def test_the_mean_over_sources(home: Path) -> None:
    runs = read_runs(home / "out/mixture/runs.jsonl", validation="mean")
    assert list(runs["loss"]) == pytest.approx(list((runs["loss_noise"] + runs["loss_words"]) / 2))
    se = (runs["loss_se_noise"] ** 2 + runs["loss_se_words"] ** 2) ** 0.5 / 2
    assert list(runs["loss_se"]) == pytest.approx(list(se))


def test_content_is_the_datasets(home: Path) -> None:
    mixing = Mixing(sources={"a": str(home / "words"), "b": str(home / "noise")}, shape={}, proxies=4, tokens=1e3)
    other = replace(mixing, sources={"a": str(home / "noise"), "b": str(home / "noise")})
    assert mixture_content(mixing)["b"] == mixture_content(other)["b"] == mixture_content(other)["a"]
    assert mixture_content(mixing)["a"] != mixture_content(mixing)["b"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (('noise = "noise"', 'noise = "nosie"'), DataError, "nosie is no dataset"),
        (("proxies = 6", "proxies = 3"), StudyError, "a linear regression needs 4 at least"),
        (('target = "words"', 'target = "wrods"'), StudyError, "no validation set; did you mean 'words'"),
        (("n_layers = 1}\nproxies", "n_layers = [1, 2]}\nproxies"), StudyError, "12 trainings of 6 mixtures"),
        (("tokens = 1280", "tokens = 1280\nmax_repeats = 0.01"), LawError, "raise max_repeats or lower tokens"),
        (("d_model = 16, n", "d_modle = 16, n"), CodecError, "unknown key 'shape.d_modle'; did you mean 'd_model'"),
    ],
)  # fmt: skip
def test_what_makes_no_mixture(home: Path, change: tuple[str, str], error: type[Exception], match: str) -> None:
    study = load_study(write_mixed_study(home, change)).settled()
    assert study.mixture is not None
    with pytest.raises(error, match=match):
        make_mixture(study, study.mixture, home / "other", lambda entries: pytest.fail("it was trained"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ((', noise = "noise"', ""), "names 1 sources"),
        (("words = ", "mean = "), "calls a source 'mean'"),
        (("proxies = 6", "proxies = 6\nsizes = {words = 1e6}"), "a source or a size of 'noise'"),
        (("[mixture]", "[text]\nbuiltin = true\n[mixture]"), r"\[text\] and \[mixture\] both say"),
        (('target = "words"', 'model = "cubic"'), "mixture.model"),
    ],
)
def test_what_is_no_study(home: Path, change: tuple[str, str], match: str) -> None:
    with pytest.raises(CodecError, match=match):
        load_study(write_mixed_study(home, change))
