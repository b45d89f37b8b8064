"""The catalogue of tasks and suites: its facts against their sources, users' own files, and finding the items."""

import csv
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lathe.evals.tasks
from lathe.errors import CodecError, EvaluationError
from lathe.evals.items import ask, read_items
from lathe.evals.tasks import Catalogue, Suite, Task, find_file, load_catalogue
from lathe.laws.testbed import TASK_SETS

CATALOGUE = load_catalogue()
TASK = Task(name="t", file="a/t.jsonl", kind="schema", shots=0, chance=0.5, published="somewhere, data")
STANDING_IN = {  # samples and stand-ins beside the checkout, by the task that they serve
    "hellaswag": "hellaswag_sample2000.jsonl",
    "mmlu": "mmlu_sample25.jsonl",
    "qnli": "qnli_sample1500.jsonl",
    "wnli": "wnli_dev.jsonl",
    "mnli": "adv_mnli_dev.jsonl",
}


class TestFacts:
    def test_testbed(self, shared_data: Path) -> None:
        """mlfoundations/scaling says of each of its tasks what kind it is, its shots, and its chance."""
        kinds = {
            "multiple choice": "multiple_choice",
            "schema": "schema",
            "language modeling": "language_modelling",
            "question answering": "generation",
        }
        with (shared_data / "laws/scaling_testbed/eval_metadata.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                task = CATALOGUE.tasks[row["Eval Task"]]
                assert (task.kind, task.shots, task.category) == (
                    kinds[row["Task Type"]],
                    int(row["#shots"]),
                    row["Task Category"],
                )
                assert task.chance == float(row["Random baseline"]) / 100, task.name

    def test_suites(self) -> None:
        sizes = {name: len(suite.members) for name, suite in CATALOGUE.suites.items()}
        assert sizes == {"morph": 11, "mobilellm": 8, "inheritune": 10, "testbed-46": 46, "testbed-17": 17, "core": 22}
        assert {name for name, suite in CATALOGUE.suites.items() if suite.score == "centred"} == {"core"}
        for size, members in TASK_SETS.items():
            assert CATALOGUE.suites[f"testbed-{size}"].members == members
        assert set(CATALOGUE.suites["core"].members) < set(TASK_SETS["46"])
        for suite in CATALOGUE.suites.values():
            files = [CATALOGUE.tasks[member] for member in suite.members]
            assert len({(task.file, task.shots) for task in files}) == len(files)

    @pytest.mark.parametrize(
        ("suite", "names"),
        [
            (
                "morph",
                "arc_challenge arc_easy boolq copa hellaswag jeopardy_all lambada_openai mmlu piqa winograd_wsc "
                "winogrande",
            ),
            ("mobilellm", "arc_easy arc_challenge boolq piqa siqa hellaswag openbook_qa winogrande"),
            ("inheritune", "winograd_wsc piqa boolq winogrande logi_qa mmlu wnli qnli mnli truthfulqa_mc1"),
        ],
    )
    def test_papers_suites(self, suite: str, names: str) -> None:
        tasks = [CATALOGUE.tasks[member] for member in CATALOGUE.suites[suite].members]
        assert [Path(task.file).stem for task in tasks] == names.split()
        assert {task.name: task.shots for task in tasks if task.shots} == ({"mmlu": 5} if suite == "inheritune" else {})

    def test_chance_is_that_of_the_files(self, shared_data: Path) -> None:
        """One over the number of options, on average over the items; nothing is guessed in the other kinds."""
        checked = set()
        for name, task in CATALOGUE.tasks.items():
            path = shared_data / "eval/icl" / STANDING_IN.get(Path(task.file).stem, Path(task.file).name)
            if path.is_file():
                items = read_items(path, task.kind)
                expected = [1 / n if (n := len(item.options)) > 1 else 0 for item in items]
                assert task.chance == pytest.approx(sum(expected) / len(items), abs=5e-4), name
                checked.add(path.name)
        assert len(checked) == 24

    def test_every_task_is_asked_as_its_files_are(self, shared_data: Path) -> None:
        """The end of what a model reads before the right option of the first item, and that option's beginning."""
        for name, end in {
            "arc_easy": "of most food webs?\nAnswer:| Sunlight is",
            "arc_easy_morph": "of most food webs?Answer:| Sunlight is",
            "mmlu_zeroshot": "(D) False, True\nAnswer:| A",
            "piqa_morph": "it's new occupants?\nAnswer:| Provide the guinea pig",
            "siqa": "B. Find somewhere to go\nAnswer:| B",
            "copa": "turned on the faucet, therefore| water flowed",
            "winograd": "a permit because the city councilmen| feared violence.",
            "jeopardy": "Nov. 28-29, 1929\nAnswer:| Admiral Richard Byrd",
            "svamp": "does she need to add now?\nUsing the formula below:\n|",
        }.items():
            task = CATALOGUE.tasks[name]
            file = STANDING_IN.get(Path(task.file).stem, Path(task.file).name)
            question = ask(read_items(shared_data / "eval/icl" / file, task.kind), task, shots=0)[0]
            assert end in "|".join(question.pairs[question.gold]), name

    def test_every_row_has_a_source(self) -> None:
        assert all(task.published for task in CATALOGUE.tasks.values())
        assert all(re.search(r"arXiv:\d{4}\.\d{5}", suite.source) for suite in CATALOGUE.suites.values())
        text = Path(lathe.evals.tasks.__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
        assert "http" not in text
        rows = tomllib.loads(text)["tasks"]
        assert len(rows) == len(CATALOGUE.tasks)

    def test_published_core_is_centred_on_its_authors_chance(self) -> None:
        """mlfoundations/dclm, eval_meta_data_v1.csv, differs from the testbed's file on four of CORE's tasks."""
        core = CATALOGUE.suites["core"]
        assert core.chance == {
            "agi_eval_lsat_ar": 0.2,
            "bigbench_language_identification": 0.091,
            "boolq": 0.62,
            "commonsense_qa": 0.2,
        }


class TestSelect:
    def test_tasks_and_suites(self) -> None:
        tasks, suites = CATALOGUE.select(["copa", "morph", "obqa", "operators", "copa"])
        assert [t.name for t in tasks][:2] == ["copa", "arc_challenge_morph"]
        assert [t.name for t in tasks][-2:] == ["openbook_qa", "bigbench_operators"]
        assert len(tasks) == 13
        assert suites == {"morph": CATALOGUE.suites["morph"]}

    def test_unknown(self) -> None:
        with pytest.raises(EvaluationError, match="unknown task or suite 'arc_eazy'; did you mean 'arc_easy'"):
            CATALOGUE.select(["copa", "arc_eazy"])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


OWN = """
[defaults]
published = "mine"
kind = "multiple_choice"
chance = 0.5
shots = 2

[tasks.pets]
file = "pets/cats_and_dogs.jsonl"
prelude = "Q: "

[tasks]
pets_zeroshot = { like = "pets", shots = 0 }
copa = { like = "copa", shots = 5 }

[suites.mine]
members = ["pets", "copa", "winograd"]
source = "me"
score = "centred"
chance = { pets = 0.6 }
"""


class TestOwnCatalogues:
    def test_add_and_override(self, tmp_path: Path) -> None:
        found = load_catalogue(write(tmp_path / "mine.toml", OWN))
        pets = Task(
            name="pets",
            file="pets/cats_and_dogs.jsonl",
            kind="multiple_choice",
            shots=2,
            chance=0.5,
            published="mine",
            prelude="Q: ",
            category="pets",
        )
        assert found.tasks["pets"] == pets
        assert found.tasks["pets_zeroshot"] == replace(pets, name="pets_zeroshot", shots=0)
        assert found.tasks["copa"] == replace(CATALOGUE.tasks["copa"], shots=5)
        assert found.suites["mine"] == Suite(
            members=("pets", "copa", "winograd"), source="me", score="centred", chance={"pets": 0.6}
        )
        assert {n: t for n, t in found.tasks.items() if n in CATALOGUE.tasks and n != "copa"} == {
            n: t for n, t in CATALOGUE.tasks.items() if n != "copa"
        }
        assert load_catalogue() == CATALOGUE

    def test_json(self, tmp_path: Path) -> None:
        row = {"file": "x.jsonl", "kind": "schema", "shots": 0, "chance": 0, "published": "mine"}
        path = write(tmp_path / "mine.json", json.dumps({"lathe": "catalogue", "version": 1, "tasks": {"x": row}}))
        assert load_catalogue(path).tasks["x"].category is None

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ('[tasks.x]\nlike = "copa"\nshotz = 1', "unknown key 'tasks.x.shotz'; did you mean 'shots'"),
            ('[tasks.x]\nlike = "cope"', "tasks.x.like is 'cope', no task above it; did you mean 'copa'"),
            ('[tasks.x]\nfile = "x.jsonl"', "the key 'tasks.x.kind' of a Task is missing"),
            ('[tasks.x]\nlike = "copa"\nkind = "schemas"', "tasks.x.kind is \"schemas\"; did you mean 'schema'"),
            ('[tasks.x]\nlike = "copa"\nshots = -1', "tasks.x: task 'x': shots=-1"),
            ('[tasks.x]\nlike = "copa"\nshots = 1.5', "tasks.x.shots is 1.5; it should be a whole number"),
            ('[tasks.x]\nlike = "copa"\nchance = 1', "chance=1; wanted at least 0, and below 1"),
            ('[tasks.x]\nlike = "copa"\nname = "y"', "a task's name is its table's"),
            ('[task.x]\nlike = "copa"', "unknown key 'task'; did you mean 'tasks'"),
            ("[defaults]\nshot = 1", "unknown key 'defaults.shot'; did you mean 'shots'"),
            ("tasks = 3", "tasks is 3; it should be a table"),
            ("[tasks]\nx = 3", "tasks.x is 3; it should be a table"),
            ('[suites.s]\nsource = "me"\nmembers = ["copy"]', "suite 's' has a member 'copy'; did you mean 'copa'"),
            ('[suites.s]\nsource = "me"\nmembers = []', "suites.s: a suite should name its members, each once"),
            ('[suites.s]\nsource = "me"\nmember = ["copa"]', "unknown key 'suites.s.member'; did you mean 'members'"),
            (
                '[suites.s]\nsource = "me"\nmembers = ["copa"]\nchance = {piqa = 0.5}',
                "chance is given for 'piqa', which is no member",
            ),
            ("[tasks]\nx = ]", "not TOML: .*line 2"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, error: str) -> None:
        with pytest.raises(CodecError, match=rf"mine\.toml: .*{error}"):
            load_catalogue(write(tmp_path / "mine.toml", text))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CodecError, match=r"mine\.toml: cannot be read"):
            load_catalogue(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": "schemas"}, "task 't': unknown kind 'schemas'; did you mean 'schema'"),
        ({"normalisation": "bytes"}, "unknown normalisation 'bytes'; did you mean 'byte'"),
        ({"average": "item"}, "unknown average 'item'"),
        ({"match": "exactly"}, "unknown match 'exactly'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; wanted 0 or more shots and 1 or more new tokens"),
        ({"stop": ("",)}, "its name, its file and what stops it may not be empty"),
        ({"file": ""}, "may not be empty"),
    ],
)
def test_bad_tasks(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(EvaluationError, match=error):
        replace(TASK, **fields)


def test_suites_name_tasks() -> None:
    with pytest.raises(EvaluationError, match="suite 's' has a member 'u'"):
        Catalogue(tasks={"t": TASK}, suites={"s": Suite(members=("u",), source="me")})


class TestFindFile:
    @pytest.mark.parametrize("place", ["a/t.jsonl", "t.jsonl", "deep/down/t.jsonl"])
    def test_in_a_folder_or_below(self, tmp_path: Path, place: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert find_file(tmp_path, TASK) == tmp_path / place

    def test_its_own_folder_comes_first(self, tmp_path: Path) -> None:
        for place in ("a/t.jsonl", "t.jsonl", "b/t.jsonl"):
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).touch()
        assert find_file(tmp_path, TASK) == tmp_path / "a/t.jsonl"

    def test_nothing_is_guessed(self, tmp_path: Path) -> None:
        for name in ("t_sample.jsonl", "st.jsonl", "t.json"):
            (tmp_path / name).touch()
        missing = r"task 't' needs t\.jsonl, .* has no such file; it comes from somewhere, data \(a/t\.jsonl\).*t=PATH"
        with pytest.raises(EvaluationError, match=missing):
            find_file(tmp_path, TASK)

    @pytest.mark.parametrize("key", ["t", "u"])
    def test_given(self, tmp_path: Path, key: str) -> None:
        """By the task's name, or for all the tasks that ask the same file's items."""
        task = replace(TASK, name="u")
        path = tmp_path / "t_sample.jsonl"
        with pytest.raises(EvaluationError, match=rf"t_sample\.jsonl, given for '{key}', is no file"):
            find_file(tmp_path, task, files={key: path})
        path.touch()
        assert find_file(tmp_path, task, files={key: str(path)}) == path
        with pytest.raises(EvaluationError, match="needs t"):
            find_file(tmp_path, task, files={"v": path})

    def test_two_of_a_name(self, tmp_path: Path) -> None:
        for folder in ("b", "c"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "t.jsonl").touch()
        with pytest.raises(
            EvaluationError, match=r"has 2 files t\.jsonl: .*b/t\.jsonl, .*c/t\.jsonl; give the file as t="
        ):
            find_file(tmp_path, TASK)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match=r"there is no folder .*nowhere of items; give the folder that has t"):
            find_file(tmp_path / "nowhere", TASK)
