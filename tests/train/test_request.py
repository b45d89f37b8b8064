"""What a training's file and settings become: every spelling of it, what is filled in, and what is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from small_datasets import VOCAB, write_small_dataset

from lathe import codec
from lathe.errors import CodecError, DataError, LatheError, MissingExtraError, PresetError, RecipeError
from lathe.laws.hyper import step_law
from lathe.model.checkpoint import save_checkpoint
from lathe.model.init import build
from lathe.presets.shapes import load_shape
from lathe.recipe import Data, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.request import check_request, read_request
from lathe.train.settings import NONE, list_settings, name_kind, parse_setting

FILE = """
tokens = 2e3
seq_len = 16
batch_tokens = 64
lr = 1e-3
data = "text"
shape = { d_model = 16, n_layers = 2, n_heads = 2 }
"""
SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, vocab_size=VOCAB)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a dataset in text/ and a file of settings, recipe.toml."""
    monkeypatch.chdir(tmp_path)
    write_small_dataset(Path("text"), train=4000, held_out=400)
    Path("recipe.toml").write_text(FILE)
    return tmp_path


class TestReading:
    def test_a_file(self, here: Path) -> None:
        recipe, execution = read_request("recipe.toml")
        assert recipe.data is not None
        assert recipe == Recipe(
            shape=SHAPE, tokens=2000, seq_len=16, batch_tokens=64, lr=1e-3,
            data=Data(train=str(here / "text"), content=recipe.data.content),
        )  # fmt: skip
        assert type(recipe.tokens) is int
        assert execution == Execution(out=f"runs/{recipe.id}")
        assert not Path("runs").exists()

    def test_every_table(self, here: Path) -> None:
        write_small_dataset(Path("other"), held_out=100, seed=1)
        Path("recipe.toml").write_text("""
            tokens = 2000
            seq_len = 16
            batch_tokens = 64
            lr = 1
            clip = "none"
            optimiser = "muon"
            [data]
            train = "text"
            validation = { here = "text", there = "other" }
            repeats = 2
            [schedule]
            name = "wsd"
            warmup_steps = 3.0
            [init]
            scheme = "mup"
            base = { d_model = 8, n_layers = 2, n_heads = 2, vocab_size = 50 }
            [shape]
            d_model = 16
            n_layers = 2
            n_heads = 2
            vocab_size = 64
            [execution]
            out = "out"
            mesh = { dp = 2 }
            branch_at = [1e3, 1500]
            trackers = ["wandb"]
        """)
        recipe, execution = read_request("recipe.toml")
        assert (recipe.lr, recipe.clip, recipe.shape.vocab_size) == (1.0, None, 64)
        assert recipe.optimiser == Optimiser(name="muon")
        assert recipe.schedule == Schedule(name="wsd", warmup_steps=3)
        assert recipe.init.base == Shape.of(d_model=8, n_layers=2, n_heads=2, vocab_size=50)
        assert recipe.data is not None
        assert recipe.data.validation == {"here": str(here / "text"), "there": str(here / "other")}
        assert execution == Execution(out="out", mesh={"dp": 2}, branch_at=(1000, 1500), trackers=("wandb",))

    def test_settings_alone(self, here: Path) -> None:
        texts = {"shape.d_model": "16", "shape.n_layers": "2", "shape.n_heads": "2", "tokens": "2e3", "seq_len": "16"}
        texts |= {"batch_tokens": "64", "lr": "1e-3", "data": "text"}
        assert read_request(None, texts) == read_request("recipe.toml")
        values: dict[str, Any] = {"shape": SHAPE, "tokens": 2000, "seq_len": 16, "batch_tokens": 64, "lr": 1e-3}
        assert read_request(None, values | {"data.train": here / "text"}) == read_request("recipe.toml")

    def test_settings_take_the_files_place(self, here: Path) -> None:
        recipe, execution = read_request(
            "recipe.toml",
            {
                "lr": "2e-3", "optimiser": "muon", "optimiser.beta2": ".99", "schedule": "wsd", "clip": NONE,
                "shape.d_ff": "40", "execution.out": "elsewhere", "execution.mesh": "dp=2,tp=1",
                "execution.branch_at": "1e3,1_500", "data.mask_documents": "true", "execution.compile": True,
            },
        )  # fmt: skip
        assert (recipe.lr, recipe.clip, recipe.shape.d_ff, recipe.tokens) == (2e-3, None, 40, 2000)
        assert recipe.optimiser == Optimiser(name="muon", beta2=0.99)
        assert recipe.schedule.name == "wsd"
        assert recipe.data is not None
        assert recipe.data.mask_documents
        assert execution == Execution(out="elsewhere", mesh={"dp": 2, "tp": 1}, branch_at=(1000, 1500), compile=True)

    def test_a_plans_recipe(self, here: Path) -> None:
        plain = Recipe(shape=SHAPE, tokens=2000, seq_len=16, batch_tokens=64, lr=1e-3)
        codec.save(plain, "plan.json", kind="recipe")
        assert read_request("plan.json", need_data=False)[0] == plain
        with pytest.raises(RecipeError, match=r"^plan\.json: nothing says what to train on; give --data"):
            read_request("plan.json")
        assert read_request("plan.json", {"data": "text"})[0] == read_request("recipe.toml")[0]

    def test_a_runs_own_recipe_from_anywhere(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe, _ = read_request("recipe.toml")
        (here / "run").mkdir()
        codec.save(recipe, here / "run" / "recipe.json", kind="recipe")
        monkeypatch.chdir("/")
        assert read_request(here / "run" / "recipe.json")[0] == recipe

    def test_paths_are_relative_to_the_file(self, here: Path) -> None:
        folder = here / "deep"
        folder.mkdir()
        codec.save(SHAPE, folder / "shape.json", kind="shape")
        text = re.sub("shape = .*", 'shape = "shape.json"', FILE.replace('"text"', '"../text"'))
        (folder / "recipe.toml").write_text(text + '[execution]\nout = "out"\nruns = "all.jsonl"\n')
        recipe, execution = read_request("deep/recipe.toml")
        assert recipe == read_request("recipe.toml")[0]
        assert (execution.out, execution.runs) == ("deep/out", "deep/all.jsonl")
        assert read_request("deep/recipe.toml", {"execution.out": "here"})[1].out == "here"

    def test_a_shape_by_name(self, here: Path) -> None:
        write_small_dataset(Path("text"), train=4000, held_out=100)
        recipe, _ = read_request("recipe.toml", {"shape": "mobilellm-125m", "shape.vocab_size": "100"})
        assert recipe.shape == dataclasses.replace(load_shape("mobilellm-125m"), vocab_size=100)


class TestNumbersChosen:
    def test_tokens_per_param(self, here: Path) -> None:
        recipe, _ = read_request("recipe.toml", {"tokens_per_param": "0.25", "data.repeats": "2"})
        assert recipe.tokens == round(SHAPE.params / 4)
        Path("ratio.toml").write_text(FILE.replace("tokens = 2e3", "tokens_per_param = 1", 1))
        assert read_request("ratio.toml", {"data.repeats": "9"})[0].tokens == SHAPE.params
        assert read_request("ratio.toml", {"tokens": "2000"})[0].tokens == 2000

    def test_step_law_is_resolved_and_recorded(self, here: Path) -> None:
        said: list[str] = []
        text = FILE.replace("lr = 1e-3", 'lr = "step-law"').replace("batch_tokens = 64", 'batch_tokens = "step-law"')
        Path("law.toml").write_text(text)
        recipe, _ = read_request("law.toml", report=said.append)
        law = step_law(SHAPE, 2000)
        assert recipe.lr == pytest.approx(law.lr, rel=1e-3)
        assert recipe.batch_tokens == 48 == 16 * round(law.batch_tokens / 16)
        assert codec.decode(Recipe, codec.encode(recipe)) == recipe
        assert said[0] == f"step law: lr = {recipe.lr:g}, batch_tokens = 48"
        assert any("below the step law's smallest published setting" in line for line in said)
        given, _ = read_request("recipe.toml", {"lr": "step-law"})
        assert (given.lr, given.batch_tokens) == (recipe.lr, 64)

    def test_step_laws_batch_is_a_whole_sequence_at_least_and_no_more_than_there_is(self, here: Path) -> None:
        settings = {"batch_tokens": "step-law", "seq_len": "1000", "tokens": "1500"}
        assert read_request("recipe.toml", settings)[0].batch_tokens == 1000
        settings |= {"tokens": "500"}
        with pytest.raises(CodecError, match="tokens=500 is less than one batch of 1000"):
            read_request("recipe.toml", settings)


class TestContent:
    def test_data_are_known_by_their_tokens(self, here: Path) -> None:
        recipe, _ = read_request("recipe.toml")
        write_small_dataset(Path("copy"), train=4000, held_out=400)
        copy, _ = read_request("recipe.toml", {"data": "copy"})
        assert copy.data != recipe.data
        assert copy.id == recipe.id
        ids = {recipe.id}
        for number, given in enumerate(({"seed": 1}, {"held_out": 401}, {"tokenizer_sha256": "a"})):
            write_small_dataset(Path(f"other{number}"), **({"train": 4000, "held_out": 400} | given))
            ids.add(read_request("recipe.toml", {"data": f"other{number}"})[0].id)
        ids.add(read_request("recipe.toml", {"data.validation": "a=other0"})[0].id)
        ids.add(read_request("recipe.toml", {"data.validation": "a=other1"})[0].id)
        assert len(ids) == 6
        assert read_request("recipe.toml", {"data.repeats": "3"})[0].id == recipe.id

    def test_mixtures_by_their_weights_too(self, here: Path) -> None:
        write_small_dataset(Path("b"), train=4000, held_out=400, seed=1)
        ids = set()
        for weights in ("a = 1, b = 1", "a = 1, b = 2", "a = 1, b = 0"):
            Path("mix.toml").write_text(f"sources = {{ a = 'text', b = 'b' }}\nweights = {{ {weights} }}")
            recipe, _ = read_request("recipe.toml", {"data": "mix.toml"})
            ids.add(recipe.id)
        assert len(ids) == 3
        with pytest.raises(RecipeError, match=r"data\.repeats=2 is for one dataset"):
            read_request("recipe.toml", {"data": "mix.toml", "data.repeats": "2"})

    def test_other_data_than_the_recipes(self, here: Path) -> None:
        recipe, _ = read_request("recipe.toml")
        codec.save(recipe, "recipe.json", kind="recipe")
        write_small_dataset(Path("text"), train=4000, held_out=400, seed=1)
        with pytest.raises(RecipeError, match=r"recipe\.json: .*text is not what the recipe was made with"):
            read_request("recipe.json")
        assert read_request("recipe.json", {"data": "text"})[0].id != recipe.id

    def test_first_weights(self, here: Path) -> None:
        for seed in (0, 1):
            model = build(SHAPE, scheme="openlm", seed=seed)
            save_checkpoint(here / f"model{seed}", SHAPE, model.state_dict())
        Path("from.toml").write_text(re.sub("shape = .*", "init = { checkpoint = 'model0' }", FILE))
        first, _ = read_request("from.toml")
        assert first.shape == SHAPE
        assert first.init == Init(checkpoint=str(here / "model0"), content=first.init.content)
        codec.save(first, "recipe.json", kind="recipe")
        other, _ = read_request("recipe.json", {"init.checkpoint": "model1"})
        assert len({read_request("recipe.toml")[0].id, first.id, other.id}) == 3
        with pytest.raises(LatheError, match="there is no folder"):
            read_request("recipe.toml", {"init.checkpoint": "missing"})


class TestRefused:
    @pytest.mark.parametrize(
        ("before", "after", "says"),
        [
            ("seq_len", "seqlen", "unknown key 'seqlen'; did you mean 'seq_len'"),
            ("data =", "dta =", "unknown key 'dta'; did you mean 'data'"),
            ("lr = 1e-3", "lr = 1e-3\noptimiser = { beta = 0.9 }", "unknown key 'optimiser.beta'; did you mean"),
            ("lr = 1e-3", "lr = 1e-3\nexecution = { save = 1 }", "execution: unknown key 'save'; did you mean"),
            ("lr = 1e-3", "lr = 1e-3\nexecution = { out = 'o', keep_last = 0 }", "keep_last=0; wanted 1 or more"),
            ("lr = 1e-3", "lr = 1e-3\nschedule = 'wsv'", "schedule.name is \"wsv\"; did you mean 'wsd'"),
            ("lr = 1e-3", "lr = 1e-3\nschedule = 3", "schedule is 3; it should be a table"),
            ("lr = 1e-3", "lr = 1e-3\ntokens_per_param = 3", "has tokens and tokens_per_param"),
            ("lr = 1e-3", "lr = 'steplaw'", 'lr is "steplaw"; it should be a number'),
            ("lr = 1e-3", "lr = -1", "lr=-1.0; wanted a number above zero"),
            ("lr = 1e-3", "", "the key 'lr' of a Recipe is missing"),
            ("seq_len = 16", "batch_tokens", "line 3"),
            ("seq_len = 16", "lr = 'step-law'", "Cannot overwrite"),
            ("tokens = 2e3", "", "nothing says how long to train"),
            ("tokens = 2e3", "tokens = 2000.5", "tokens is 2000.5; it should be a whole number"),
            ("tokens = 2e3", "tokens = 60", "tokens=60 is less than one batch of 64"),
            ("batch_tokens = 64", "batch_tokens = 65", "not a whole number of sequences of 16"),
            ("n_heads = 2", "n_head = 2", "unknown key 'n_head'; did you mean 'n_heads'"),
            ("n_heads = 2", "n_heads = 0", "shape: n_heads=0"),
            ("n_heads = 2", "n_heads = 2, vocab_size = 40", "ids below 50, and the model a vocabulary of 40"),
            ('"text"', '"txt"', "txt is no dataset"),
        ],
    )
    def test_in_a_file(self, here: Path, before: str, after: str, says: str) -> None:
        Path("recipe.toml").write_text(FILE.replace(before, after, 1))
        with pytest.raises(LatheError, match=re.escape(says)) as caught:
            read_request("recipe.toml")
        assert str(caught.value).startswith("recipe.toml: ")

    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("lrr", "1", "unknown setting 'lrr'; did you mean 'lr'"),
            ("optimiser.bta2", "1", "unknown setting 'optimiser.bta2'; did you mean 'beta2'"),
            ("lr", "fast", "lr is 'fast'; wanted a number, such as 3e-4"),
            ("tokens", "1.5", "tokens is '1.5'; wanted a whole number, such as 1000 or 1e9"),
            ("tokens", "nan", "tokens is 'nan'; wanted a whole number"),
            ("tokens", "none", "tokens is 'none'; wanted a whole number, such as 1000 or 1e9"),
            ("execution.mesh", "dp", "execution.mesh is 'dp'; wanted NAME=INT"),
            ("execution.mesh", "dq=2", "a mesh has no axis 'dq'"),
            ("execution.compile", "yes", "wanted true or false"),
            ("execution.trackers", "wandbb", "no tracker is called 'wandbb'; did you mean 'wandb'"),
            ("schedule", "cosin", "did you mean 'cosine'"),
        ],
    )
    def test_in_a_setting(self, here: Path, key: str, value: str, says: str) -> None:
        with pytest.raises(LatheError, match=re.escape(says)):
            read_request("recipe.toml", {key: value})

    def test_a_shape_that_there_is_not(self, here: Path) -> None:
        with pytest.raises(PresetError, match="did you mean 'mobilellm-125m'"):
            read_request("recipe.toml", {"shape": "mobilellm-125"})
        Path("bare.toml").write_text(re.sub("shape = .*", "", FILE))
        with pytest.raises(RecipeError, match="nothing says what to train; give --shape"):
            read_request("bare.toml")

    def test_more_tokens_than_there_are(self, here: Path) -> None:
        """4,000 tokens make 249 windows of 16, and 3,968 tokens 62 batches of 4 of them."""
        assert read_request("recipe.toml", {"tokens": "3999"})[0].steps == 62
        with pytest.raises(DataError, match=r"4,032 tokens take 1\.02 epochs of .*text, and data\.repeats is 1; raise"):
            read_request("recipe.toml", {"tokens": "4032"})
        assert read_request("recipe.toml", {"tokens": "4032", "data.repeats": "1.02"})[0].steps == 63
        with pytest.raises(CodecError, match="repeats=0"):
            read_request("recipe.toml", {"data.repeats": "0"})

    def test_nothing_held_out(self, here: Path) -> None:
        write_small_dataset(Path("all"), train=4000)
        with pytest.raises(DataError, match="all holds nothing out"):
            read_request("recipe.toml", {"data": "all"})

    def test_a_folder_that_cannot_be_made(self, here: Path) -> None:
        with pytest.raises(RecipeError, match=r"out=recipe\.toml/run cannot be made: .*recipe\.toml is a file"):
            read_request("recipe.toml", {"execution.out": "recipe.toml/run"})

    def test_another_kind_of_file(self, here: Path) -> None:
        codec.save(SHAPE, "shape.json", kind="shape")
        with pytest.raises(CodecError, match=r"shape\.json: holds a shape, and a recipe was wanted"):
            read_request("shape.json")
        with pytest.raises(CodecError, match="cannot be read"):
            read_request("missing.toml")


@pytest.mark.parametrize(
    ("settings", "world", "says"),
    [
        ({"execution.micro_batch": "3"}, 1, "does not split into 1 data rank × micro-batches of 3"),
        ({}, 3, "does not split into 3 data ranks; take a batch of 3 or 6 sequences"),
        ({"execution.mesh": "dp=2"}, 1, "mesh dp=2 is for 2 processes, and there is 1; start 2"),
        ({"execution.mesh": "dp=2"}, 4, "mesh dp=2 is for 2 processes, and there are 4"),
        ({"execution.mesh": "pp=2", "shape.tied": "true"}, 2, "cannot train tied embeddings"),
        ({"execution.mesh": "tp=4"}, 4, "mesh tp=4 does not divide n_kv_heads=2"),
        ({"execution.branch_at": "1e3"}, 1, "schedule=cosine has no stable phase"),
        ({"execution.device": "gpu"}, 1, "torch cannot use the device 'gpu'"),
        ({"init": "gpt3"}, 1, "unknown init scheme 'gpt3'; did you mean 'gpt2'"),
        ({"init": "mup"}, 1, "scales from a base"),
    ],
)
def test_what_could_not_be_carried_out(here: Path, settings: dict[str, str], world: int, says: str) -> None:
    asked = read_request("recipe.toml", settings)
    with pytest.raises(LatheError, match=re.escape(says)):
        check_request(*asked, world=world)
    check_request(*read_request("recipe.toml"), world=4)


def test_trackers_that_are_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read_request("recipe.toml", {"execution.trackers": "trackio"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="tracking with trackio needs"):
        check_request(*asked, world=1)


@pytest.mark.parametrize("key", sorted(list_settings()))
def test_every_setting_reads_its_default_from_text(key: str) -> None:
    setting = list_settings()[key]
    default, kind = setting.default, name_kind(setting.kind)
    if default is dataclasses.MISSING or kind == "NAME" or (default is None and not kind.endswith(NONE)):
        return
    words = {str(True): "true", str(False): "false", str(None): NONE, "()": "", "{}": ""}
    found = parse_setting(key, words.get(str(default), str(default)))
    assert found == (list(default) if isinstance(default, tuple) else default)
