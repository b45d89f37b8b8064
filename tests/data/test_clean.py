"""Cleaning: planted junk and duplicates go, by the step meant for them; recipes are strict; nothing is fetched."""

import gzip
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lathe.data.clean import CleanReport, clean_corpus, make_executors
from lathe.data.clean_recipe import (
    STEPS,
    BadWords,
    Classifier,
    CleanRecipe,
    ExactDuplicates,
    GopherQuality,
    GopherRepetition,
    Language,
    Lines,
    NearDuplicates,
    Regex,
    Slurm,
    Step,
    Url,
    decode_recipe,
    encode_recipe,
    load_recipe,
)
from lathe.errors import CodecError, DataError, MissingExtraError

needs_datatrove = pytest.mark.skipif(importlib.util.find_spec("datatrove") is None, reason="needs datatrove")
Row = dict[str, Any]
FEW = NearDuplicates(num_buckets=4)
"""Quick: each bucket is a task."""
SYLLABLES = [c + v for c in "bdfklmnprst" for v in "aeiou"]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(folder: Path) -> list[Row]:
    found = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path) as file:
            found += [json.loads(line) for line in file]
    return found


def write_prose(seed: int, *, words: int = 120) -> str:
    """Make sentences of made-up words that pass the filters; two seeds share nearly nothing."""
    rng = random.Random(seed)
    made = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(words)]
    for i in range(0, words, 8):
        made[i] = rng.choice(["the", "of", "and", "to", "that", "with"])
    return "\n".join(" ".join(made[i : i + 15]) + "." for i in range(0, words, 15))


def clean(tmp_path: Path, rows: Iterable[Row], *steps: Step, **options: Any) -> tuple[CleanReport, list[Row]]:
    """Clean rows with some steps in one process; returns the report and what is left."""
    source = write_rows(tmp_path / "in" / "a.jsonl", rows)
    report = clean_corpus(CleanRecipe(steps=steps), inputs=[source], out=tmp_path / "out", **{"tasks": 1, **options})
    assert report is not None
    return report, read_rows(tmp_path / "out" / "documents")


def write_symbols(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.randrange(10**5)} {rng.choice('@&%*+=;')}" for _ in range(80))


# what the junk is → a text, and the reason it should go for
JUNK: dict[str, tuple[Callable[[int], str], str]] = {
    "symbols": (lambda i: "the of and " + write_symbols(i), "below_alpha"),
    "repeats": (lambda i: "Click here to see the offer of the day.\n" * 30 + str(i), "dup_line"),
    "short": (lambda i: f"Too short to be of use, page {i}.", "short_doc"),
    "long words": (
        lambda i: "the of " + " ".join(f"unpronounceable{i}word{j}" for j in range(60)),
        "above_avg",
    ),
    "no stop words": (
        lambda i: " ".join(f"{a}{b} " for a, b in zip(SYLLABLES[:50], SYLLABLES[i + 1 :] + SYLLABLES, strict=False)),
        "stop_words",
    ),
}


@pytest.fixture(scope="module")
def planted(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CleanReport, Path, list[Row]]:
    """Clean real text with planted duplicates and junk."""
    pytest.importorskip("datatrove")
    rng = random.Random(0)
    originals: list[Row] = []
    for name, count in (("reviews", 60), ("books", 40)):
        with open(shared_data / "text" / f"{name}.jsonl") as file:
            originals += [{"id": f"{name}-{i}", "text": json.loads(file.readline())["text"]} for i in range(count)]
    vocabulary = sorted({word for row in originals for word in row["text"].split()})
    rows = [*originals]
    rows += [{"id": f"exact:{row['id']}", "text": row["text"]} for row in rng.sample(originals, 30)]
    for i, row in enumerate(rng.sample(originals, 80)):
        change = shuffle_sentences if i % 2 else change_words
        rows.append({"id": f"near:{row['id']}", "text": change(row["text"], vocabulary, rng)})
    for kind, (make, _) in JUNK.items():
        rows += [{"id": f"{kind}:{i}", "text": make(i)} for i in range(4)]
    rng.shuffle(rows)
    folder = tmp_path_factory.mktemp("clean")
    for i in range(2):
        write_rows(folder / "in" / f"{i}.jsonl", rows[i::2])
    report = clean_corpus(CleanRecipe(), inputs=[folder / "in"], out=folder / "out", tasks=1)
    assert report is not None
    return report, folder / "out", rows


def change_words(text: str, vocabulary: list[str], rng: random.Random) -> str:
    """Replace 3 to 5 % of the words."""
    words = text.split(" ")
    for i in rng.sample(range(len(words)), int(rng.uniform(0.03, 0.05) * len(words))):
        words[i] = rng.choice(vocabulary)
    return " ".join(words)


def shuffle_sentences(text: str, _: list[str], rng: random.Random) -> str:
    sentences = text.split(". ")
    rng.shuffle(sentences)
    return ". ".join(sentences)


def test_duplicates_of_real_text_go_and_one_of_each_stays(planted: tuple[CleanReport, Path, list[Row]]) -> None:
    _, out, rows = planted
    kept = {row["id"] for row in read_rows(out / "documents")}
    filtered = {row["id"] for i in (1, 2) for row in read_rows(next((out / "removed").glob(f"{i:02d}-*")))}
    origins: dict[str, list[str]] = {}
    for row in rows:
        kind, _, origin = row["id"].rpartition(":")
        if kind not in JUNK and row["id"] not in filtered:
            origins.setdefault(origin, []).append(row["id"])
    left = [sum(one in kept for one in ids) for ids in origins.values()]
    assert min(left) == 1, "one of each stays"
    texts = [row["text"] for row in read_rows(out / "documents")]
    assert len(set(texts)) == len(texts), "no exact duplicate stays"
    planted_near = sum(one.startswith("near:") for ids in origins.values() for one in ids)
    assert planted_near > 60
    assert sum(left) - len(left) <= 0.05 * planted_near
    assert len(origins) > 90, "the filters keep nearly all real text"


def test_junk_goes_for_the_reason_meant(planted: tuple[CleanReport, Path, list[Row]]) -> None:
    _, out, _ = planted
    reasons = {row["id"]: row.get("filter_reason", "") for f in (out / "removed").iterdir() for row in read_rows(f)}
    for kind, (_, reason) in JUNK.items():
        for i in range(4):
            assert reason in reasons[f"{kind}:{i}"]


def test_counts_add_up(planted: tuple[CleanReport, Path, list[Row]]) -> None:
    report, out, rows = planted
    assert report.read == len(rows)
    assert report.kept == len(read_rows(out / "documents")) == report.read - sum(step.removed for step in report.steps)
    for before, after in pairwise(report.steps):
        assert after.seen == before.seen - before.removed
    for step in report.steps:
        removed = read_rows(out / "removed" / step.label)
        assert len(removed) == step.removed
        assert sum(step.reasons.values()) in (0, step.removed)
        assert [sample.id for sample in step.samples] == [row["id"] for row in removed[:3]]
    assert not (out / "work").exists()


@needs_datatrove
class TestSteps:
    def test_other_keys_survive(self, tmp_path: Path) -> None:
        row = {"id": "a", "text": write_prose(0), "url": "http://a.org", "rank": "../../x", "n": {"deep": [1, None]}}
        _, left = clean(tmp_path, [row], GopherQuality(), ExactDuplicates())
        assert left[0].items() >= row.items()
        assert left[0]["duplicate_count"] == 0

    def test_exact_duplicates_keep_one_of_each(self, tmp_path: Path) -> None:
        texts = ["one", "two", "one", "One", "two ", "one"]
        report, left = clean(tmp_path, [{"text": t} for t in texts], ExactDuplicates())
        assert sorted(row["text"] for row in left) == ["One", "one", "two", "two "]
        assert report.steps[0].removed == 2

    def test_two_processes(self, tmp_path: Path) -> None:
        for i in range(3):
            write_rows(
                tmp_path / "in" / f"{i}.jsonl", [{"id": f"{i}-{j}", "text": write_prose(i * j)} for j in range(3)]
            )
        report = clean_corpus(
            CleanRecipe(steps=(GopherQuality(), ExactDuplicates())), inputs=[tmp_path / "in"], out=tmp_path / "out"
        )
        left = read_rows(tmp_path / "out" / "documents")
        assert sorted(row["text"] for row in left) == sorted(write_prose(i) for i in (0, 1, 2, 4))
        assert report is not None
        assert (report.read, report.kept) == (9, 4)
        (tmp_path / "in" / "2.jsonl").write_text("{}\n")
        with pytest.raises(DataError, match=r"2\.jsonl, line 1: has no key 'text'"):
            clean_corpus(CleanRecipe(), inputs=[tmp_path / "in"], out=tmp_path / "out2")

    def test_distinct_pages_are_no_near_duplicates(self, tmp_path: Path) -> None:
        rows = [{"text": write_prose(i)} for i in range(60)]
        report, _ = clean(tmp_path, rows, NearDuplicates())
        assert report.kept == 60

    def test_everything_removed_is_no_error(self, tmp_path: Path) -> None:
        report, left = clean(tmp_path, [{"text": "short"}], GopherQuality(), ExactDuplicates(), FEW)
        assert (report.read, report.kept, left) == (1, 0, [])
        assert [step.seen for step in report.steps] == [1, 0, 0]

    def test_lines(self, tmp_path: Path) -> None:
        prose = write_prose(1)
        page = f"MENU OF THE DAY\n12 | 34\n{prose}\n1,234 likes\nHome\n\nRead more"
        texts = [page, prose, "Home\nSign in to see\n" + prose[:60], "Home"]
        report, left = clean(tmp_path, [{"text": text} for text in texts], Lines(max_removed_ratio=0.1))
        assert [row["text"] for row in left] == [prose + "\n", prose]
        assert report.steps[0].reasons == {"nothing_left": 1, "too_many_lines_removed": 1}

    def test_regex(self, tmp_path: Path) -> None:
        _, left = clean(tmp_path, [{"text": "lorem ipsum"}, {"text": "dolor"}], Regex(regex_exp="lorem"))
        assert [row["text"] for row in left] == ["dolor"]

    def test_bad_words(self, tmp_path: Path) -> None:
        (tmp_path / "words.txt").write_text("ass\nbad thing\n")
        rows = [{"text": t, "language": "de"} for t in ("a class", "a BAD thing!", "an ass")]
        _, left = clean(tmp_path, rows, BadWords(words=str(tmp_path / "words.txt")))
        assert [row["text"] for row in left] == ["a class"]

    # datatrove asks tldextract 5.4 for what that now calls top_domain_under_public_suffix
    @pytest.mark.filterwarnings("ignore:The 'registered_domain' property:DeprecationWarning")
    def test_url(self, tmp_path: Path) -> None:
        pytest.importorskip("ahocorasick")
        pytest.importorskip("tldextract")
        rows = [
            {"text": "a", "url": "https://www.bad.co.uk/x"},
            {"text": "b", "url": "https://good.org"},
            {"text": "c"},
        ]
        step = Url(extra_domains=("bad.co.uk",), use_integrated_lists=False)
        report, left = clean(tmp_path, rows, step)
        assert [row["text"] for row in left] == ["b", "c"]
        assert report.steps[0].reasons == {"domain": 1}

    def test_models_that_are_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a stand-in for fastText's model: its trainer gives NaN every now and then, even on clean text."""
        pytest.importorskip("fasttext")
        opened = []

        class Model:
            labels = ("__label__en", "__label__de")

            def predict(self, text: str, k: int) -> tuple[tuple[str, ...], Any]:
                german = 0.9 if " und " in text else 0.2
                return self.labels, np.array([1 - german, german])

        def load(path: str) -> Model:
            opened.append(path)
            return Model()

        monkeypatch.setattr("lathe.data.clean_steps.load_fasttext", load)
        model = tmp_path / "lid.bin"
        model.touch()
        rows = [{"text": "the cat and the dog"}, {"text": "die Katze und der Hund"}]
        _, left = clean(tmp_path, rows, Language(model=str(model)))
        assert [(row["text"], row["language"]) for row in left] == [("the cat and the dog", "en")]
        _, left = clean(tmp_path / "other", rows, Classifier(model=str(model), keep_labels=(("de", 0.5),)))
        assert [row["text"] for row in left] == ["die Katze und der Hund"]
        assert opened == [str(model)] * 2
        with pytest.raises(DataError, match="has no label 'fr'; it has en, de"):
            clean(tmp_path / "none", rows, Classifier(model=str(model), keep_labels=(("fr", 0.5),)))

    def test_the_english_tokenizer(self, tmp_path: Path) -> None:
        pytest.importorskip("spacy")
        source = write_rows(tmp_path / "a.jsonl", [{"text": write_prose(i % 3)} for i in range(4)] + [{"text": "no"}])
        report = clean_corpus(
            CleanRecipe(language="en", steps=(GopherQuality(), FEW)), inputs=[source], out=tmp_path / "out", tasks=1
        )
        assert report is not None
        assert report.kept == 3


@needs_datatrove
class TestInputs:
    def test_every_kind_of_file(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        folder = tmp_path / "in"
        write_rows(folder / "a.jsonl", [{"body": "one"}, {"body": ""}])
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("two\nlines", encoding="utf-8-sig")
        (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"body": "three"}\n\n'))
        table = pyarrow.table({"body": ["four", None], "n": [1, 2]})
        parquet.write_table(table, folder / "d.parquet")
        with pyarrow.CompressedOutputStream(str(folder / "e.jsonl.zst"), "zstd") as file:
            file.write(b'{"body": "five"}\n')
        report = clean_corpus(
            CleanRecipe(steps=(Regex(regex_exp="^x"),)), inputs=[folder], out=tmp_path / "out", tasks=1, text_key="body"
        )
        left = read_rows(tmp_path / "out" / "documents")
        assert sorted(row["text"] for row in left) == ["five", "four", "one", "three", "two\nlines"]
        assert report is not None
        assert (report.read, report.kept, report.without_text) == (5, 5, 2)

    def test_bad_lines(self, tmp_path: Path) -> None:
        source = tmp_path / "a.jsonl"
        source.write_bytes(b'{"text": "one"}\n{"text": \n[1]\n{"texts": "x"}\n{"text": 3}\n{"text": "\xff"}\n')
        recipe = CleanRecipe(steps=(Regex(regex_exp="^x"),))
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON.*--on-bad-line skip"):
            clean_corpus(recipe, inputs=[source], out=tmp_path / "out", tasks=1)
        assert not (tmp_path / "out").exists()
        report = clean_corpus(recipe, inputs=[source], out=tmp_path / "skip", tasks=1, on_bad_line="skip")
        assert report is not None
        assert (report.read, report.bad_lines) == (1, 5)

    def test_a_broken_file(self, tmp_path: Path) -> None:
        source = tmp_path / "a.jsonl.gz"
        source.write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
        with pytest.raises(DataError, match="cut short or broken"):
            clean_corpus(CleanRecipe(), inputs=[source], out=tmp_path / "out", tasks=1)
        source.write_bytes(gzip.compress(b'{"text": "one"}\n'))
        clean_corpus(CleanRecipe(), inputs=[source], out=tmp_path / "out", tasks=1)
        (tmp_path / "b.txt").write_bytes(b"caf\xe9")
        with pytest.raises(DataError, match=rf"^{tmp_path}/b\.txt: not UTF-8"):
            clean_corpus(CleanRecipe(), inputs=[tmp_path / "b.txt"], out=tmp_path / "out2", tasks=1)

    def test_a_broken_parquet_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        with pytest.raises(DataError, match=r"a\.parquet is cut short or broken"):
            clean_corpus(CleanRecipe(), inputs=[tmp_path], out=tmp_path / "out")

    def test_a_cluster_that_is_not_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
        recipe = CleanRecipe(slurm=Slurm(partition="cpu", time="01:00:00"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DataError, match="this machine has no sbatch"):
            clean_corpus(recipe, inputs=[source], out=tmp_path / "out", executor="slurm", tasks=1)
        if importlib.util.find_spec("ray") is None:
            with pytest.raises(DataError, match=r"needs the package ray.*pip install ray"):
                clean_corpus(recipe, inputs=[source], out=tmp_path / "out", executor="ray")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"inputs": ["none.jsonl"]}, "there is no file or folder"),
            ({"executor": "slurn"}, "no executor 'slurn'; did you mean 'slurm'"),
            ({"executor": "slurm"}, "needs a table .slurm. with partition and time"),
            ({"tasks": 0}, "tasks=0"),
        ],
    )
    def test_bad_arguments(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        given = {"inputs": [write_rows(tmp_path / "a.jsonl", [{"text": "a"}])], "out": tmp_path / "out"}
        with pytest.raises(DataError, match=message):
            clean_corpus(CleanRecipe(), **{**given, **options})
        assert not (tmp_path / "out").exists()

    def test_the_output_folder(self, tmp_path: Path) -> None:
        rows = [{"text": write_prose(0)}]
        first, _ = clean(tmp_path, rows, GopherQuality())
        again = clean_corpus(
            CleanRecipe(steps=(GopherQuality(),)), inputs=[tmp_path / "in" / "a.jsonl"], out=tmp_path / "out", tasks=1
        )
        assert again == first, "a finished cleaning is only read"
        with pytest.raises(DataError, match="holds another cleaning"):
            clean_corpus(CleanRecipe(), inputs=[tmp_path / "in"], out=tmp_path / "out")
        with pytest.raises(DataError, match="is not empty"):
            clean_corpus(CleanRecipe(), inputs=[tmp_path / "in"], out=tmp_path / "in")

    def test_an_interrupted_cleaning_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"id": str(i), "text": write_prose(i % 3)} for i in range(5)]
        source = write_rows(tmp_path / "in" / "a.jsonl", rows)
        whole, left = clean(tmp_path / "whole", rows, ExactDuplicates(), FEW)
        recipe = CleanRecipe(steps=(ExactDuplicates(), FEW))

        def stop(name: str, share: float) -> None:
            if share > 0.5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            clean_corpus(recipe, inputs=[source], out=tmp_path / "out", tasks=1, progress=stop)
        first = tmp_path / "out" / "logs" / "before-01-exact-duplicates" / "completions" / "00000"
        done = first.stat().st_mtime_ns
        report = clean_corpus(recipe, inputs=[source], out=tmp_path / "out", tasks=1)
        assert first.stat().st_mtime_ns == done
        assert report is not None
        assert report.steps == whole.steps
        assert [r["text"] for r in read_rows(tmp_path / "out" / "documents")] == [r["text"] for r in left]


@needs_datatrove
class TestNothingIsFetched:
    @pytest.mark.parametrize(
        ("step", "package", "message"),
        [
            (Language(), "fasttext", r"lid\.176\.bin, which is not there; fetch https://.*put it there, or name it"),
            (Language(backend="glotlid"), "fasttext", r"model_v3\.bin.*fetch https://"),
            (Language(model="here.bin"), "fasttext", r"here\.bin"),
            (Classifier(model="quality.bin", keep_labels=(("hq", 0.5),)), "fasttext", r"quality\.bin"),
            (BadWords(), "datatrove", r"bad-words-en\.txt.*fetch https://raw\.githubusercontent.*put it there"),
        ],
    )
    def test_what_to_fetch_is_said_before_any_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, package: str, message: str
    ) -> None:
        pytest.importorskip(package)
        monkeypatch.setenv("HOME", str(tmp_path))
        source = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(DataError, match=message):
            clean_corpus(CleanRecipe(steps=(step,)), inputs=[source], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("language", "message"), [("klingon", "no tokenizer for language='klingon'"), ("th", "pythainlp")]
    )
    def test_words_of_a_language(self, tmp_path: Path, language: str, message: str) -> None:
        if language == "th" and importlib.util.find_spec("pythainlp"):
            pytest.skip("pythainlp is installed")
        source = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(DataError, match=message):
            clean_corpus(CleanRecipe(language=language), inputs=[source], out=tmp_path / "out")

    def test_datatrove_is_an_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datatrove", None)
        with pytest.raises(MissingExtraError, match=r'pip install "lathe\[data\]"'):
            clean_corpus(CleanRecipe(), inputs=["a.jsonl"], out=tmp_path / "out")


@needs_datatrove
class TestClusters:
    def test_slurm_submits_once_and_reports_when_done(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from datatrove.executor import SlurmPipelineExecutor

        submitted = []
        monkeypatch.setattr(SlurmPipelineExecutor, "run", lambda self: submitted.append(self))
        source = write_rows(tmp_path / "a.jsonl", [{"text": write_prose(i % 2)} for i in range(4)])
        recipe = CleanRecipe(
            steps=(GopherQuality(), ExactDuplicates()),
            slurm=Slurm(partition="cpu", time="01:00:00", mem_per_cpu_gb=8, sbatch_args={"account": "x"}),
        )
        given: dict[str, Any] = {"inputs": [source], "out": tmp_path / "out", "tasks": 1}
        assert clean_corpus(recipe, executor="slurm", **given) is None
        (last,) = submitted
        chain = [last]
        while chain[-1].depends is not None:
            chain.append(chain[-1].depends)
        assert [one.tasks for one in chain] == [1, 1, 1, 1]
        assert (last.partition, last.time, last.mem_per_cpu_gb) == ("cpu", "01:00:00", 8)
        with pytest.raises(DataError, match="submitted and not all done"):
            clean_corpus(recipe, executor="slurm", **given)
        # the jobs' work, done here in their place
        assert clean_corpus(recipe, **given).kept == 2  # pyright: ignore[reportOptionalMemberAccess]
        assert clean_corpus(recipe, executor="slurm", **given).kept == 2  # pyright: ignore[reportOptionalMemberAccess]

    def test_ray_gets_the_same_pipelines(self, tmp_path: Path) -> None:
        from lathe.data.clean_stages import Folders, build_stages

        folders = Folders(out=tmp_path)
        source = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
        recipe = CleanRecipe()
        stages = build_stages(
            recipe, [source], folders, tasks=3, text_key="text", on_bad_line="fail", compression=".gz"
        )
        made = make_executors(stages, "ray", recipe, logs=folders.logs, workers=3)
        assert [one.tasks for one in made] == [3, 3, 1, 3, 3, 40, 1, 3]
        assert all(one.depends is before for before, one in pairwise(made))
        assert [one.pipeline for one in made] == [stage.pipeline for stage in stages]


class TestRecipe:
    def test_round_trip(self) -> None:
        steps = tuple(
            kind.word() for name, kind in STEPS.items() if name not in ("regex", "classifier")
        )  # fmt: skip
        recipe = CleanRecipe(steps=steps, language="en", slurm=Slurm(partition="p", time="1:00:00"))
        assert decode_recipe(json.loads(json.dumps(encode_recipe(recipe))), source="x") == recipe

    def test_from_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "steps.toml"
        path.write_text(
            '[[steps]]\nstep = "gopher-repetition"\ntop_n_grams = [[2, 0.3]]\n[[steps]]\nstep = "near-duplicates"\n'
        )
        recipe = load_recipe(path)
        assert recipe.steps == (GopherRepetition(top_n_grams=((2, 0.3),)), NearDuplicates())
        assert recipe.labels == ("01-gopher-repetition", "02-near-duplicates")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '[[steps]]\nstep = "gofer-quality"',
                r"steps\[1\]: there is no step 'gofer-quality'; did you",
            ),
            ('[[steps]]\nstep = "gopher-quality"\nmin_words = 3', r"unknown key 'min_words'; did you mean 'min_"),
            (
                '[[steps]]\nstep = "gopher-quality"\nmin_doc_words = "3"',
                "min_doc_words is .3.; it should be a whole number",
            ),
            ('[[steps]]\nstep = "near-duplicates"\nnum_buckets = 0', "num_buckets=0; wanted 1 or more"),
            ('[[steps]]\nstep = "regex"', "the key 'regex_exp' of a Regex is missing"),
            ('[[step]]\nstep = "regex"', "wanted one ..steps.. or more"),
            ('languag = "en"\n[[steps]]\nstep = "lines"', "unknown key 'languag'; did you mean 'language'"),
            ('[[steps]]\nname = "regex"', r"steps\[1\]: wanted a table with step ="),
            ("steps = []", "a recipe without steps"),
            ('[slurm]\npartition = "p"\n[[steps]]\nstep = "lines"', "'time' of a Slurm is missing"),
        ],
    )
    def test_bad_recipes(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "steps.toml"
        path.write_text(text)
        with pytest.raises(CodecError, match=message):
            load_recipe(path)


@needs_datatrove
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lathe.cli.clean import clean as command

    source = write_rows(tmp_path / "a.jsonl", [{"text": write_prose(i % 2)} for i in range(3)] + [{"text": "short"}])
    command((str(source),), out=tmp_path / "out", tasks=1, compression="none")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Kept 2 of 4 documents; removed 2" in printed.out
    assert "gopher_short_doc" in printed.out
    assert (tmp_path / "out" / "documents" / "00000.jsonl").is_file()
