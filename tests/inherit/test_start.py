"""`lathe inherit`: what lies in the folder, how layers are chosen, what trains from it, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lathe import codec
from lathe.cli import main
from lathe.errors import CheckpointError, DataError, EvaluationError, LatheError, ShapeError
from lathe.evals.analyse import analyse, read_sequences
from lathe.inherit.layers import By, choose_layers
from lathe.inherit.start import INHERITED, Inheritance, Inherited, inherit
from lathe.inherit.width import measure_moments, moments_flops, narrow
from lathe.model.checkpoint import WEIGHTS, load_model, load_shape_of, read_tensors
from lathe.recipe import Data, Init, Recipe
from lathe.train.content import hash_weights
from lathe.train.execution import Execution
from lathe.train.loop import train
from tests.inherit.small_references import GPT2, SMALL, save_reference
from tests.small_datasets import write_small_dataset


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return save_reference(tmp_path / "large")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    write_small_dataset(folder, train=3000, held_out=200, vocab_size=SMALL.vocab_size)
    return folder


def few(**asked: object) -> Inheritance:
    return Inheritance(**{"sequences": 6, "seq_len": 20, **asked})  # pyright: ignore[reportArgumentType]


class TestFolder:
    def test_holds_a_checkpoint_its_companions_and_where_it_comes_from(self, large: Path, tmp_path: Path) -> None:
        (large / "generation_config.json").write_text('{"eos_token_id": 3}')
        asked = Inheritance(layers="0,2", part="attention", seed=7)
        found = inherit(large, tmp_path / "small", asked)
        small = tmp_path / "small"
        assert {path.name for path in small.iterdir()} == {
            WEIGHTS, "shape.json", "tokenizer.json", "generation_config.json", INHERITED,
        }  # fmt: skip
        assert (small / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()
        assert codec.load(Inherited, small / INHERITED, kind="inherited") == found
        assert load_shape_of(small) == found.shape == dataclasses.replace(SMALL, n_layers=2)
        assert (found.source, found.content) == (str(large), hash_weights(large))
        assert (found.asked, found.layers, found.flops) == (asked, (0, 2), 0.0)

    def test_counts_what_was_copied_and_what_was_drawn(self, large: Path, tmp_path: Path) -> None:
        ours, theirs = tmp_path / "small", read_tensors(large / WEIGHTS)
        found = inherit(large, ours, Inheritance(keep_ratio=0.5, part="mlp"))
        same = {
            name: w
            for name, w in read_tensors(ours / WEIGHTS).items()
            if torch.equal(w, theirs[name])  # the first layers keep their names
        }
        assert (found.tensors_inherited, found.tensors_drawn) == (3 + 2 * 4, 2 * 3)
        assert (len(same), sum(w.numel() for w in same.values())) == (found.tensors_inherited, found.params_inherited)
        assert found.params_inherited + found.params_drawn == found.shape.params

    def test_nothing_is_left_where_it_fails(self, large: Path, tmp_path: Path) -> None:
        for asked in (Inheritance(layers="0:9"), Inheritance(d_model=13), Inheritance(scheme="x", part="mlp")):
            with pytest.raises(LatheError):
                inherit(large, tmp_path / "small", asked)
        assert {path.name for path in tmp_path.iterdir()} == {"large"}


class TestChoices:
    @pytest.mark.parametrize("by", ["rank", "mass", "similarity"])
    def test_by_what_the_reference_does_with_a_text(self, by: By, large: Path, text: Path, tmp_path: Path) -> None:
        found = inherit(large, tmp_path / "small", few(by=by), data=text)
        tokens_nt = read_sequences(text, sequences=6, seq_len=20, split="train")
        analysis = analyse(load_model(large), tokens_nt, name="large", dataset="text", lens=False)
        assert found.layers == choose_layers(4, 2, by=by, analysis=analysis)
        assert found.flops == analysis.flops > 0
        again = inherit(large, tmp_path / "again", few(by=by), analysis=analysis)
        assert (again.layers, again.flops) == (found.layers, 0.0)

    def test_by_itself_takes_half_and_a_share_the_first(self, large: Path, tmp_path: Path) -> None:
        cases = [({"by": "uniform"}, (0, 3)), ({"keep_ratio": 0.75}, (0, 1, 2)), ({}, (0, 1, 2, 3))]
        for number, (asked, layers) in enumerate(cases):
            assert inherit(large, tmp_path / str(number), few(**asked)).layers == layers

    def test_width_by_the_streams_of_a_text(self, large: Path, text: Path, tmp_path: Path) -> None:
        found = inherit(large, tmp_path / "small", few(d_model=12, width_by="svd"), data=text)
        tokens_nt = read_sequences(text, sequences=6, seq_len=20, split="train")
        _, wanted = narrow(
            SMALL, read_tensors(large / WEIGHTS), 12, by="svd",
            moments_dd=measure_moments(load_model(large), tokens_nt),
        )  # fmt: skip
        weights = read_tensors(tmp_path / "small" / WEIGHTS)
        assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
        assert found.flops == moments_flops(SMALL, 6, 20)
        by_weights = inherit(large, tmp_path / "blind", few(d_model=12, width_by="svd"))
        assert by_weights.flops == 0.0

    def test_learned_positions_bound_the_sequences(self, tmp_path: Path, text: Path) -> None:
        large = save_reference(tmp_path / "gpt2", GPT2)
        found = inherit(large, tmp_path / "small", Inheritance(by="similarity", sequences=4), data=text)
        assert len(found.layers) == 2


@pytest.mark.parametrize("asked", [{"layers": "0:2"}, {"part": "mlp"}, {"d_model": 12}])
def test_a_recipe_trains_from_it(asked: dict[str, object], large: Path, text: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shape = inherit(large, small, few(**asked)).shape
    recipe = Recipe(
        shape=shape, tokens=256, seq_len=16, batch_tokens=64, lr=1e-6, data=Data(train=str(text)),
        init=Init(checkpoint=str(small)),
    )  # fmt: skip
    run = train(recipe, Execution(out=str(tmp_path / "run"), threads=1), report=lambda _: None)
    assert all(loss > 0 for loss in run.losses.values())
    before, after = load_model(small), load_model(tmp_path / "run")
    drift = [(a - b).abs().max() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(drift) < 1e-4, "it began elsewhere"


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            ({"layers": "0:5"}, "no layer 4 in a reference of 4, counted from 0 to 3"),
            ({"keep_ratio": 1.5}, "no share of the layers"),
            ({"by": "rank"}, "must read a text: give --data"),
            ({"d_model": 20}, r"heads keep their d_head=6, .* widths that work: the multiples of 12 up to 24"),
        ],
    )
    def test_what_the_reference_does_not_have(
        self, asked: dict[str, object], why: str, large: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ShapeError, match=why):
            inherit(large, tmp_path / "small", few(**asked))

    def test_layers_named_and_chosen(self) -> None:
        with pytest.raises(ShapeError, match="layers='0:2' names the layers, and by would choose them; give one"):
            Inheritance(layers="0:2", by="rank")

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        large = save_reference(tmp_path / "bare", tokenizer=False)
        with pytest.raises(CheckpointError, match=r"has no tokenizer.json: .* put the model's tokenizer there, or say"):
            inherit(large, tmp_path / "small", few(layers="0:2"))
        inherit(large, tmp_path / "small", few(layers="0:2", tokenizer=False))
        assert not (tmp_path / "small" / "tokenizer.json").exists()

    def test_another_models_tokenizer(self, large: Path, tmp_path: Path) -> None:
        other = save_reference(tmp_path / "other", dataclasses.replace(SMALL, vocab_size=99))
        (large / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
        with pytest.raises(CheckpointError, match="largest id is 98, but the embedding has 61 rows"):
            inherit(large, tmp_path / "small", few(layers="0:2"))

    def test_another_shapes_analysis(self, large: Path, text: Path, tmp_path: Path) -> None:
        other = save_reference(tmp_path / "other", dataclasses.replace(SMALL, d_ff=44))
        tokens_nt = read_sequences(text, sequences=2, seq_len=8)
        analysis = analyse(load_model(other), tokens_nt, name="other", dataset="text")
        with pytest.raises(ShapeError, match="the analysis is of other, which has another shape"):
            inherit(large, tmp_path / "small", few(by="rank"), analysis=analysis)

    def test_text_of_another_vocabulary_or_none(self, large: Path, tmp_path: Path) -> None:
        wide = tmp_path / "wide"
        write_small_dataset(wide, train=3000, vocab_size=500)
        with pytest.raises(EvaluationError, match="made with another tokenizer"):
            inherit(large, tmp_path / "small", few(d_model=12), data=wide)
        with pytest.raises(DataError, match="missing"):
            inherit(large, tmp_path / "small", few(d_model=12), data=tmp_path / "missing")

    def test_folders(self, large: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is there already"):
            inherit(large, tmp_path, few(layers="0:2"))
        with pytest.raises(CheckpointError, match="is the model itself"):
            inherit(large, large, few(layers="0:2"))
        with pytest.raises(CheckpointError, match="there is no folder"):
            inherit(tmp_path / "missing", tmp_path / "small", few(layers="0:2"))
        (large / WEIGHTS).write_bytes((large / WEIGHTS).read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            inherit(large, tmp_path / "small", few(layers="0:2"))
        assert not (tmp_path / "small").exists()


Ends = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ends(capsys: pytest.CaptureFixture[str]) -> Ends:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            main(["inherit", *map(str, arguments)])
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return run


class TestCommand:
    def test_says_what_was_taken(self, ends: Ends, large: Path, tmp_path: Path) -> None:
        code, printed, _ = ends(large, "--layers", "0:2", "--part", "mlp", "--out", tmp_path / "small")
        assert code == 0
        found = codec.load(Inherited, tmp_path / "small" / INHERITED, kind="inherited")
        assert f"layers 0 1 of {large}: 24×2" in printed
        assert f"{found.params_inherited:,} params inherited, {found.params_drawn:,} drawn" in printed
        assert printed.endswith(f"checkpoint: {tmp_path / 'small'}\n")

    def test_chooses_by_a_text_or_an_analysis_of_it(self, ends: Ends, large: Path, text: Path, tmp_path: Path) -> None:
        few = ("--sequences", 6, "--seq-len", 20)
        code, printed, _ = ends(large, "--by", "similarity", "--data", text, *few, "--out", tmp_path / "a")
        assert code == 0
        tokens_nt = read_sequences(text, sequences=6, seq_len=20, split="train")
        analysis = analyse(load_model(large), tokens_nt, name="large", dataset="text")
        codec.save(analysis, tmp_path / "analysis.json", kind="analysis")
        given = ("--analysis", tmp_path / "analysis.json")
        code, again, _ = ends(large, "--by", "similarity", *given, "--out", tmp_path / "b")
        assert (code, again.splitlines()[0]) == (0, printed.splitlines()[0])

    def test_narrow_says_that_it_is_approximate(self, ends: Ends, large: Path, tmp_path: Path) -> None:
        code, printed, _ = ends(large, "--d-model", 12, "--width-by", "svd", "--out", tmp_path / "small")
        assert code == 0
        assert "note: the width is approximate" in printed

    def test_errors_are_one_line(self, ends: Ends, large: Path, tmp_path: Path) -> None:
        cases = [
            ((), "say what to inherit: --layers 0:6, --keep-ratio"),
            (("--layers", "0:7"), "there is no layer 6 in a reference of 4"),
            (("--by", "mass"), "give --data, or choose by uniform"),
        ]
        for arguments, why in cases:
            code, _, error = ends(large, *arguments, "--out", tmp_path / "small")
            assert code == 2
            assert why in error
            assert len(error.splitlines()) == 1
