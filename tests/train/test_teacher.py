"""Train tiny students beside a teacher: what they learn, resumed and laid out runs, costs, teachers that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import distil_worker as worker
import parallel_cases as cases
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lathe import codec
from lathe.data.store import file_sha256
from lathe.errors import CheckpointError, CodecError, DeviceError, LatheError, RecipeError, Stopped
from lathe.model import loss
from lathe.model.checkpoint import load_model, save_checkpoint
from lathe.model.decoder import Decoder
from lathe.model.distil import Lesson
from lathe.model.init import build
from lathe.model.loss import chunked_losses
from lathe.presets.devices import load_device
from lathe.recipe import Data, Distil, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train import teacher as teacher_module
from lathe.train.content import hash_weights
from lathe.train.engine import open_engine
from lathe.train.estimate import estimate, lay_out
from lathe.train.execution import Execution
from lathe.train.launch import launch
from lathe.train.meter import read_metrics
from lathe.train.request import check_request, read_request
from lathe.train.teacher import Teacher, choose_dtype, open_teacher
from tests.small_datasets import VOCAB, write_small_dataset
from tests.train.test_estimate import make_execution, measure_peak_bytes
from tests.train.test_estimate import make_recipe as make_large
from tests.train.test_loop import Interrupt, assert_same, curve, make_recipe, run

SHAPE = Shape.of(d_model=24, n_layers=2, n_heads=2, d_ff=48, vocab_size=VOCAB)
MISSING = "missing"


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread, which small products need no more than."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_teacher(folder: Path, shape: Shape, *, seed: int = 5, sharpness: float = 1.0) -> str:
    """Write a checkpoint of random weights; `sharpness` scales its logits."""
    weights = build(shape, scheme="openlm", seed=seed).state_dict()
    head = "embedding.weight" if shape.tied else "head.weight"
    save_checkpoint(folder, shape, weights | {head: sharpness * weights[head]})
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_small_dataset(folder, train=4000, held_out=300)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_teacher(tmp_path_factory.mktemp("teacher"), SHAPE, sharpness=4.0)


@pytest.fixture(scope="module")
def whole(data: str, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a distilled run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(make_recipe(data, distil=Distil(teacher=teacher)), out)
    return out


class TestIds:
    """Of recipes without a teacher, as they were before there were any."""

    def test_recipes_without_a_teacher_keep_their_names(self) -> None:
        shape = Shape.of(d_model=64, n_layers=2, n_heads=4, vocab_size=512)
        plain = Recipe(shape=shape, tokens=4096, seq_len=64, batch_tokens=256, lr=1e-3)
        assert plain.id == "91d53014c7be0fe6"
        more = replace(
            plain, seed=3, data=Data(train="text", content="0" * 32, validation={"a": "b"}), z_loss=1e-4, ema=0.9,
            init=Init(checkpoint="ck", content="1" * 32), optimiser=Optimiser(name="muon"),
            schedule=Schedule(name="wsd"),
        )  # fmt: skip
        assert more.id == "f8834a4000d330a2"
        assert codec.decode(Recipe, codec.encode(plain)).id == plain.id

    def test_a_teacher_counts_by_its_content(self) -> None:
        plain = Recipe(shape=SHAPE, tokens=4096, seq_len=64, batch_tokens=256, lr=1e-3)
        first = Distil(teacher="a", content="1" * 32)
        others = [first, Distil(teacher="a"), replace(first, content="2" * 32), replace(first, weight=0.4),
                  replace(first, temperature=3.0)]  # fmt: skip
        assert len({plain.id, *(replace(plain, distil=one).id for one in others)}) == 6
        moved = replace(plain, distil=replace(first, teacher="b"))
        assert moved.id == replace(plain, distil=first).id
        assert codec.decode(Recipe, codec.encode(moved)) == moved


class TestTraining:
    def test_weight_zero_is_plain_training_to_the_bit(self, data: str, teacher: str, tmp_path: Path) -> None:
        plain, _ = run(make_recipe(data), tmp_path / "plain")
        found, _ = run(make_recipe(data, distil=Distil(teacher=teacher, weight=0.0)), tmp_path / "zero")
        assert curve(tmp_path / "zero") == curve(tmp_path / "plain")
        ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("zero", "plain"))
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
        assert (found.losses, found.flops) == (plain.losses, plain.flops)

    def test_what_a_run_says(self, data: str, teacher: str, whole: Path) -> None:
        found = json.loads((whole / "run.json").read_text())
        recipe = make_recipe(data)
        passes = recipe.tokens * SHAPE.forward_flops((16 + 1) / 2)
        assert found["flops"] == recipe.shape.train_flops(recipe.tokens, 16) + passes
        rows = list(read_metrics(whole / "metrics.jsonl"))
        assert rows[-1]["divergence"] < rows[0]["divergence"]
        assert rows[0]["loss"] == pytest.approx(curve(whole)[0]["loss"])
        kept = codec.load(Recipe, whole / "recipe.json", kind="recipe")
        assert kept.distil == Distil(teacher=teacher)
        # the teacher is in neither checkpoint
        student = {name for name, _ in Decoder(recipe.shape).named_parameters()}
        assert load_file(whole / "model.safetensors").keys() == student

    def test_the_loss_told_is_cross_entropy(self, data: str, tmp_path: Path, whole: Path) -> None:
        run(make_recipe(data), tmp_path / "plain")
        assert curve(whole)[0]["loss"] == curve(tmp_path / "plain")[0]["loss"]
        assert curve(whole)[-1]["loss"] != curve(tmp_path / "plain")[-1]["loss"]

    def test_stopped_runs_go_on_to_the_bit(
        self, data: str, teacher: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe, stops = make_recipe(data, distil=Distil(teacher=teacher)), [1, 7, 23]
        Interrupt(monkeypatch, list(stops))
        for _ in stops:
            with pytest.raises(Stopped):
                run(recipe, tmp_path / "run")
        run(recipe, tmp_path / "run")
        assert_same(tmp_path / "run", whole)
        assert divergences(tmp_path / "run") == divergences(whole)

    def test_killed_runs_go_on_to_the_bit(self, data: str, teacher: str, whole: Path, tmp_path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from tests.train import test_loop as t; from lathe.recipe import Distil\n"
            "from lathe.train.loop import Trainer; update = Trainer._update\n"
            "def slow(trainer, step):\n"
            "    update(trainer, step); print(step + 1, flush=True); time.sleep(.02)\n"
            "Trainer._update = slow\n"
            "recipe = t.make_recipe(sys.argv[2], distil=Distil(teacher=sys.argv[4]))\n"
            "t.run(recipe, Path(sys.argv[3]), save_every=2)\n"
        )
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", program, root, data, str(tmp_path / "run"), teacher]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 10:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        run(make_recipe(data, distil=Distil(teacher=teacher)), tmp_path / "run")
        assert_same(tmp_path / "run", whole)

    def test_more_is_learnt_of_a_teacher_than_of_what_it_says(self, tmp_path: Path) -> None:
        """The text is the teacher's own, so that plain training strives for the same distribution."""
        teacher = write_teacher(tmp_path / "teacher", SHAPE, sharpness=6.0)
        model = load_model(teacher)
        text_bt = draw_text(model, rows=16 * 40, time=9)
        student = replace(SHAPE, d_model=16, d_head=8, d_ff=32)
        recipe = Recipe(shape=student, tokens=16 * 8 * 40, seq_len=8, batch_tokens=16 * 8, lr=1e-2)
        weights = {
            name: weight.detach().clone() for name, weight in build(student, scheme="openlm", seed=0).named_parameters()
        }
        divergence, cross_entropy = {}, {}
        for weight in (0.0, 0.5, 1.0):
            taught = replace(recipe, distil=Distil(teacher=teacher, weight=weight, temperature=1.0))
            engine = open_engine(taught, Execution(out="", device="cpu"), weights=weights.items())
            optimiser = torch.optim.AdamW(engine.module.parameters(), lr=1e-2)
            for rows_bt in 3 * text_bt.split(16):
                engine.accumulate(rows_bt[:, :-1], rows_bt[:, 1:], torch.zeros_like(rows_bt[:, 1:]), count=16 * 8)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            fresh_bt = draw_text(model, rows=200, time=9, seed=1)
            with torch.no_grad():
                lesson = Lesson(model.hidden(fresh_bt[:, :-1]).flatten(0, 1), model.output_weight, 1.0, 1.0)
                x_nd = engine.module.hidden(fresh_bt[:, :-1]).flatten(0, 1)
                found = chunked_losses(x_nd, engine.module.output_weight, fresh_bt[:, 1:].flatten(), lesson=lesson)
            divergence[weight] = float(found.divergence / found.count)
            cross_entropy[weight] = float(found.cross_entropy / found.count)
        assert divergence[1.0] < divergence[0.5] < divergence[0.0]
        assert divergence[1.0] < 0.9 * divergence[0.0]
        assert cross_entropy[1.0] < cross_entropy[0.0]


def divergences(out: Path) -> list[float]:
    return [row["divergence"] for row in read_metrics(out / "metrics.jsonl")]


@torch.no_grad()
def draw_text(model: Decoder, *, rows: int, time: int, seed: int = 0) -> Tensor:
    """Let a model write."""
    generator = torch.Generator().manual_seed(seed)
    text_bt = torch.randint(0, VOCAB, (rows, 1), generator=generator)
    for _ in range(time - 1):
        probs_bv = model(text_bt)[:, -1].softmax(dim=1)
        text_bt = torch.cat([text_bt, torch.multinomial(probs_bv, 1, generator=generator)], dim=1)
    return text_bt


class TestTeacher:
    def test_it_is_no_part_of_the_student(self, teacher: str) -> None:
        recipe = Recipe(shape=SHAPE, tokens=64, seq_len=16, batch_tokens=64, lr=1e-2, distil=Distil(teacher=teacher))
        engine = open_engine(
            recipe, Execution(out="", device="cpu"), weights=load_file(f"{teacher}/model.safetensors").items()
        )
        taught = engine.layout.objective.teacher  # pyright: ignore[reportAttributeAccessIssue]
        weights = {id(weight) for weight in taught.decoder.parameters()}
        assert not weights & {id(weight) for weight in engine.layout.objective.parameters()}  # pyright: ignore
        assert {weight.dtype for weight in taught.decoder.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for weight in taught.decoder.parameters())
        tokens_bt = torch.randint(0, VOCAB, (4, 16))
        engine.accumulate(tokens_bt, tokens_bt, torch.zeros_like(tokens_bt), count=64)
        assert all(weight.grad is None for weight in taught.decoder.parameters())

    @pytest.mark.parametrize("name", cases.SHAPES)
    def test_without_bf16_instructions_it_is_widened_block_by_block(self, name: str, tmp_path: Path) -> None:
        folder = write_teacher(tmp_path, cases.SHAPES[name])
        wide = load_model(folder)
        for weight in wide.parameters():
            weight.copy_(weight.bfloat16())
        narrow = load_model(folder, dtype="bf16")
        taught = Teacher(narrow, Distil(teacher=folder), dtype=torch.float32)
        tokens_bt = torch.randint(0, cases.VOCAB, (2, cases.TIME))
        documents_bt = torch.arange(cases.TIME).expand(2, -1) // 5
        for documents in (None, documents_bt):
            lesson = taught.teach(tokens_bt, documents)
            expected = wide.hidden(tokens_bt, documents_bt=documents).flatten(0, 1)
            torch.testing.assert_close(lesson.x_nd, expected, rtol=0, atol=1e-5)
            assert torch.equal(lesson.weight_vd, wide.output_weight)
            assert {weight.dtype for weight in narrow.blocks.parameters()} == {torch.bfloat16}

    def test_in_bf16_it_says_nearly_the_same(self, teacher: str) -> None:
        taught = Teacher(load_model(teacher, dtype="bf16"), Distil(teacher=teacher), dtype=torch.bfloat16)
        tokens_bt = torch.randint(0, VOCAB, (2, 16))
        with torch.autocast("cpu", torch.bfloat16):
            lesson = taught.teach(tokens_bt)
        found, wanted = lesson.x_nd.float(), load_model(teacher).hidden(tokens_bt).flatten(0, 1)
        assert (found - wanted).norm() < 0.02 * wanted.norm()

    def test_what_it_computes_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert choose_dtype(torch.device("cuda")) == torch.bfloat16
        for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
                monkeypatch.setattr(torch.cpu, name, lambda has=has: has)
            assert choose_dtype(torch.device("cpu")) == dtype


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = Shape.of(**cases.SIZES | {"d_model": 48, "n_layers": 1})
    return write_teacher(tmp_path_factory.mktemp("wide"), shape, sharpness=4.0)


@pytest.fixture(scope="module")
def laid_out(wide: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tmp_path_factory.mktemp("distilled") / "two.pt"
    assert launch([sys.executable, worker.__file__, wide, str(found)], nproc=2) == 0
    return torch.load(found)


@pytest.fixture(scope="module")
def alone(wide: str) -> Any:
    @cache
    def follow(shape: str, masked: bool, dtype: str, steps: int) -> dict[str, Any]:
        return worker.follow(cases.Case(mesh={}, shape=shape, masked=masked, dtype=dtype, steps=steps), wide)

    return follow


class TestLayouts:
    @pytest.mark.parametrize("name", worker.TWO)
    def test_two_processes_are_as_one(self, laid_out: dict[str, Any], alone: Any, name: str) -> None:
        found, wanted = laid_out[name], alone(*worker.TWO[name].alone)
        torch.testing.assert_close(found["losses"], wanted["losses"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["norms"], wanted["norms"], atol=1e-4, rtol=0)
        assert found["held out"] == pytest.approx(wanted["held out"], rel=1e-5)
        assert found["weights"].keys() == wanted["weights"].keys()
        for weight in wanted["weights"]:
            torch.testing.assert_close(found["weights"][weight], wanted["weights"][weight], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("name", worker.LOW)
    def test_in_bf16_but_for_rounding(self, laid_out: dict[str, Any], alone: Any, name: str) -> None:
        found, wanted = laid_out[name], alone(*worker.LOW[name].alone)
        torch.testing.assert_close(found["losses"], wanted["losses"], atol=0.01, rtol=0)
        torch.testing.assert_close(found["norms"], wanted["norms"], atol=0.05, rtol=0)

    @pytest.mark.parametrize("axis", ["tp", "pp"])
    def test_meshes_that_cut_logits_are_refused(self, wide: str, axis: str) -> None:
        recipe = replace(cases.recipe_of(cases.Case(mesh={})), distil=Distil(teacher=wide))
        says = f"mesh {axis}=2 cannot distil: .*take fsdp or dp in place of {axis}"
        with pytest.raises(RecipeError, match=says):
            check_request(recipe, Execution(out="", device="cpu", mesh={axis: 2}), world=2)
        with pytest.raises(RecipeError, match=says):
            lay_out(recipe, Execution(out="", mesh={axis: 2}), world=1, gpu=True)
        unheard = replace(recipe, distil=Distil(teacher=wide, weight=0.0))
        check_request(unheard, Execution(out="", device="cpu", mesh={axis: 2}), world=2)


class TestEstimate:
    def test_memory_is_what_a_step_takes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 2**20)
        monkeypatch.setattr(teacher_module, "choose_dtype", lambda device: torch.bfloat16)
        sizes = {"d_model": 128, "n_layers": 3, "n_heads": 4, "vocab_size": 512}
        recipe = make_large(distil=Distil(teacher=write_teacher(tmp_path, Shape.of(**sizes))))
        memory = estimate(recipe, make_execution(), device=load_device("ryzen-9-7950x")).memory
        assert memory["teacher"] == 2 * Shape.of(**sizes).params
        said = sum(size for name, size in memory.items() if name not in ("copy being saved", "teacher"))
        assert said == pytest.approx(measure_peak_bytes(recipe, make_execution()), rel=0.1)

    def test_flops_and_time_count_the_teacher(self, teacher: str) -> None:
        plain = Recipe(shape=SHAPE, tokens=6400, seq_len=16, batch_tokens=64, lr=1e-2)
        device = load_device("h100")
        before, after = (
            estimate(one, make_execution(), device=device)
            for one in (plain, replace(plain, distil=Distil(teacher=teacher)))
        )
        assert after.flops / before.flops == pytest.approx(4 / 3)  # a teacher of the student's shape
        assert after.seconds / before.seconds == pytest.approx(4 / 3)
        assert "teacher" in after.text()


FILE = """
shape = {{ d_model = 16, n_layers = 2, n_heads = 2, d_ff = 32 }}
data = "{data}"
tokens = 1536
seq_len = 16
batch_tokens = 64
lr = 1e-2
{more}
"""


class TestRequest:
    @pytest.fixture
    def here(self, data: str, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "teacher").symlink_to(teacher)
        self.write(tmp_path, data, '[distil]\nteacher = "teacher"\ntemperature = 3.0')
        return tmp_path

    def write(self, here: Path, data: str, more: str) -> None:
        (here / "recipe.toml").write_text(FILE.format(data=data, more=more))

    def test_a_file_and_flags(self, here: Path, data: str) -> None:
        content = hash_weights("teacher")
        wanted = Distil(teacher=str(here / "teacher"), content=content, temperature=3.0)
        reports: list[str] = []
        assert read_request("recipe.toml", report=reports.append)[0].distil == wanted
        assert any("nothing says that the teacher's tokens are the data's" in one for one in reports)
        recipe, execution = read_request("recipe.toml", {"distil.weight": "0.25"})
        assert recipe.distil == replace(wanted, weight=0.25)
        check_request(recipe, execution, world=1)
        self.write(here, data, 'distil = "teacher"')
        assert read_request("recipe.toml")[0].distil == replace(wanted, temperature=2.0)
        self.write(here, data, "")
        assert read_request("recipe.toml", {"distil": "teacher"})[0].distil == replace(wanted, temperature=2.0)

    def test_a_kept_recipe_is_read_again(self, here: Path) -> None:
        recipe, _ = read_request("recipe.toml")
        codec.save(recipe, "recipe.json", kind="recipe")
        assert read_request("recipe.json")[0] == recipe
        other = write_teacher(here / "other", SHAPE, seed=6)
        assert read_request("recipe.json", {"distil": other})[0].id != recipe.id
        (here / "teacher").unlink()
        (here / "other").rename("teacher")
        with pytest.raises(RecipeError, match=r"teacher is not what the recipe was made with: .*distil\.content"):
            read_request("recipe.json")

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"distil.temperature": "0"}, "temperature=0.0; wanted a number above zero"),
            ({"distil.temperature": "-1"}, "temperature=-1.0; wanted a number above zero"),
            ({"distil.weight": "1.5"}, "weight=1.5; wanted a share from 0 to 1"),
            ({"distil.weight": "-0.1"}, "weight=-0.1; wanted a share from 0 to 1"),
            ({"distil.teacher": MISSING}, "there is no folder .*missing"),
            ({"distil.teacher": "."}, "is no Lathe checkpoint"),
            ({"distil.weigth": "1"}, "unknown setting 'distil.weigth'; did you mean 'weight'"),
        ],
    )
    def test_wrong_settings(self, here: Path, settings: dict[str, str], says: str) -> None:
        with pytest.raises(LatheError, match=says):
            read_request("recipe.toml", settings)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
    def test_temperatures_that_are_none(self, value: float) -> None:
        with pytest.raises(RecipeError, match="temperature"):
            Distil(teacher="a", temperature=value)

    def test_weights_alone_name_no_teacher(self, here: Path, data: str) -> None:
        self.write(here, data, "distil = { weight = 0.5 }")
        with pytest.raises(CodecError, match=r"'distil\.teacher' of a Distil is missing"):
            read_request("recipe.toml")

    def test_a_teacher_without_weights(self, here: Path) -> None:
        write_teacher(here / "torn", SHAPE)
        (here / "torn" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="the checkpoint is not whole"):
            read_request("recipe.toml", {"distil": "torn"})

    def test_another_vocabulary(self, here: Path, tmp_path: Path) -> None:
        write_teacher(tmp_path / "large", replace(SHAPE, vocab_size=VOCAB + 14))
        with pytest.raises(
            RecipeError, match=r"has a vocabulary of 64 tokens and the model to train one of 50; .* the same"
        ):
            read_request("recipe.toml", {"distil": "large"})
        recipe = replace(read_request("recipe.toml")[0], distil=Distil(teacher="large"))
        with pytest.raises(RecipeError, match="has a vocabulary of 64"):
            run(recipe, tmp_path / "run")

    def test_fewer_positions(self, here: Path, tmp_path: Path) -> None:
        write_teacher(tmp_path / "short", replace(SHAPE, position="learned", max_seq_len=8))
        with pytest.raises(RecipeError, match="seq_len=16 is more than the 8 learned positions of the teacher"):
            read_request("recipe.toml", {"distil": "short"})

    def test_another_tokenizer(self, here: Path, tmp_path: Path) -> None:
        own = write_teacher(tmp_path / "own", SHAPE)
        (tmp_path / "own" / "tokenizer.json").write_text("{}")
        known = file_sha256(tmp_path / "own" / "tokenizer.json")
        for name, sha256 in (("same", known), ("strange", "0" * 64)):
            write_small_dataset(tmp_path / name, train=4000, held_out=300, tokenizer_sha256=sha256)
        reports: list[str] = []
        recipe, _ = read_request("recipe.toml", {"distil": own, "data": "same"}, report=reports.append)
        assert reports == []
        with pytest.raises(RecipeError, match=r"the teacher's tokenizer .* is not that of the data .*strange"):
            read_request("recipe.toml", {"distil": own, "data": "strange"})
        with pytest.raises(RecipeError, match="the teacher's tokenizer"):
            run(replace(recipe, data=Data(train="strange")), tmp_path / "run")

    def test_too_little_memory(self, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe, execution = read_request("recipe.toml", {"execution.device": "cpu"})
        monkeypatch.setattr(teacher_module, "free_bytes", lambda device: 3.0 * SHAPE.params)
        check_request(recipe, execution, world=1)
        with pytest.raises(DeviceError, match=r"need .* GB in bf16 for 2 processes, and"):
            check_request(recipe, execution, world=2)
        monkeypatch.setattr(teacher_module, "free_bytes", lambda device: 1.0 * SHAPE.params)
        says = "teacher does not fit in the memory of cpu: its .* params need .* GB in bf16, and .* take a smaller"
        for refused in (lambda: check_request(recipe, execution, world=1), lambda: run(recipe, tmp_path / "run")):
            with pytest.raises(DeviceError, match=says):
                refused()
        unheard = replace(recipe, distil=Distil(teacher="teacher", weight=0.0))
        check_request(unheard, execution, world=1)
        assert open_teacher(unheard, torch.device("cpu")) is None
