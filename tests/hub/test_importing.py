"""Imports: folders as people have them, and everything that must be refused with a reason."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_models import load_model, random_tokens, save_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lathe.errors import CheckpointError, DeviceError
from lathe.hub import importing
from lathe.hub.importing import import_checkpoint
from lathe.model import checkpoint
from lathe.presets.shapes import load_shape

Edit = Callable[[dict[str, torch.Tensor]], object]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, edit: Edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(path: Path, *, words: int) -> None:
    Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0")).save(str(path))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Give a small Llama with grouped queries and tied embeddings."""
    save_model("llama-gqa-tied", tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def refuse(llama: Path, tmp_path: Path) -> Callable[..., None]:
    """Import the Llama and expect a refusal that says this; nothing may be left behind."""

    def call(words: str, source: object = None, **options: object) -> None:
        with pytest.raises(CheckpointError, match=words):
            import_checkpoint(source or llama, tmp_path / "ours", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "ours").exists()
        assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]

    return call


class TestFolders:
    def test_sharded(self, llama: Path, tmp_path: Path) -> None:
        whole = import_checkpoint(llama, tmp_path / "whole")
        load_model(llama).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        assert not (tmp_path / "shards" / "model.safetensors").exists()
        assert import_checkpoint(tmp_path / "shards", tmp_path / "ours") == whole
        found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "whole"))
        assert all(torch.equal(found[name], w) for name, w in wanted.items())

    def test_a_missing_shard(self, llama: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        load_model(llama).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        sorted((tmp_path / "shards").glob("model-*.safetensors"))[1].unlink()
        refuse(r"model-00002-of-\d+.safetensors is missing", tmp_path / "shards")

    @pytest.mark.parametrize("index", [{}, {"weight_map": {"a": "../../secret.safetensors"}}, {"weight_map": ["a"]}])
    def test_a_broken_index(self, index: dict, llama: Path, refuse: Callable[..., None]) -> None:
        (llama / "model.safetensors").rename(llama / "part.safetensors")
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        refuse("weight_map should name a file of this folder")

    def test_an_index_that_names_too_much(self, llama: Path, refuse: Callable[..., None]) -> None:
        (llama / "model.safetensors").rename(llama / "part.safetensors")
        index = {"weight_map": {"model.norm.weight": "part.safetensors", "lm_head.weight": "part.safetensors"}}
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        refuse("index.json names lm_head.weight, which is not in part.safetensors")

    @pytest.mark.parametrize("kept", ["both", "head"])
    def test_tied_models_may_keep_either(self, kept: str, llama: Path, tmp_path: Path) -> None:
        wanted = import_checkpoint(llama, tmp_path / "wanted")

        def edit(weights: dict[str, torch.Tensor]) -> None:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
            if kept == "head":
                del weights["model.embed_tokens.weight"]

        change_weights(llama, edit)
        assert import_checkpoint(llama, tmp_path / "ours") == wanted
        one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("wanted", "ours"))
        assert torch.equal(one["embedding.weight"], other["embedding.weight"])
        assert "head.weight" not in other

    def test_buffers_are_left_out(self, tmp_path: Path) -> None:
        save_model("gpt2", tmp_path / "theirs")
        wanted = import_checkpoint(tmp_path / "theirs", tmp_path / "wanted")

        def edit(weights: dict[str, torch.Tensor]) -> None:
            for name in list(weights):  # the names of OpenAI's own file
                weights[name.removeprefix("transformer.")] = weights.pop(name)
            weights["h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril().bool()
            weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)

        change_weights(tmp_path / "theirs", edit)
        assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours") == wanted

    @pytest.mark.parametrize(
        ("dtype", "stored"), [(None, torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
    )
    def test_dtype(self, dtype: str | None, stored: torch.dtype, llama: Path, tmp_path: Path) -> None:
        change_weights(llama, lambda weights: weights.update({n: w.half() for n, w in weights.items()}))
        import_checkpoint(llama, tmp_path / "ours", dtype=dtype)
        assert {w.dtype for w in load_file(tmp_path / "ours" / "model.safetensors").values()} == {stored}

    def test_companions_travel(self, llama: Path, tmp_path: Path) -> None:
        save_tokenizer(llama / "tokenizer.json", words=61)
        (llama / "modeling_evil.py").write_text("raise SystemExit")
        import_checkpoint(llama, tmp_path / "ours")
        names = {p.name for p in (tmp_path / "ours").iterdir()}
        assert names == {"model.safetensors", "shape.json", "tokenizer.json", "generation_config.json"}

    def test_special_tokens_of_old_configs_travel(self, llama: Path, tmp_path: Path) -> None:
        (llama / "generation_config.json").unlink()
        import_checkpoint(llama, tmp_path / "ours")
        assert checkpoint.load_stop_tokens(tmp_path / "ours") == (2,)

    def test_a_tokenizer_from_elsewhere(self, llama: Path, tmp_path: Path) -> None:
        save_tokenizer(tmp_path / "words.json", words=61)
        import_checkpoint(llama, tmp_path / "ours", tokenizer=tmp_path / "words.json")
        assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == (tmp_path / "words.json").read_bytes()


class TestRefusedSettings:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rotates alike in every layer"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling=\{.*linear.* cannot be imported"),
            ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rotates alike in every layer"),
            ({"rope_parameters": {"rope_theta": 777.0, "partial_rotary_factor": 0.5}}, "all of a head is rotated"),
            ({"rope_theta": 1e4}, "rope_parameters.rope_theta=777.0 and rope_theta=10000.0 contradict each other"),
            ({"hidden_act": "gelu"}, 'hidden_act="gelu" cannot be imported; Lathe knows "silu", "swish"'),
            ({"attention_bias": True}, "attention_bias=true and mlp_bias=false contradict each other"),
            ({"quantization_config": {"bits": 4}}, "the weights are quantised; import the model they were made from"),
            ({"final_logit_softcapping": 30.0}, "does not scale or cap"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "must attend to all tokens before"),
            ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 cannot be imported; Lathe knows false, true"),
            ({"hidden_size": "24"}, "d_model='24' should be a whole number"),
            ({"num_key_value_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
            ({"vocab_size": None}, "config.json lacks vocab_size; a llama model needs it"),
            ({"rms_norm_eps": [1]}, "norm_eps"),
        ],
    )
    def test_llama(self, changes: dict, words: str, llama: Path, refuse: Callable[..., None]) -> None:
        change_config(llama, **changes)
        refuse(words)

    @pytest.mark.parametrize(
        ("name", "changes", "words"),
        [
            ("mistral", {"sliding_window": 16}, "sliding_window=16 cannot be imported: tokens must attend to all"),
            ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true cannot be imported"),
            ("qwen3", {"attention_bias": True}, "its output projection would have a bias"),
            ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "must not depend on the layer's number"),
            ("gpt2", {"scale_attn_weights": False}, "scores must be divided by the root of d_head"),
            ("gpt2", {"activation_function": "quick_gelu"}, 'activation_function="quick_gelu" cannot be imported'),
            ("neox", {"attention_bias": False}, "attention_bias=false cannot be imported"),
            ("opt", {"do_layer_norm_before": False}, "a block's norms must come first"),
            ("opt", {"word_embed_proj_dim": 12}, "the embedding must be as wide as hidden_size"),
            ("olmo", {"clip_qkv": 8.0}, "are not clipped"),
            ("stablelm", {"qk_layernorm": True}, "have a norm of their own in every head"),
        ],
    )
    def test_others(self, name: str, changes: dict, words: str, tmp_path: Path, refuse: Callable[..., None]) -> None:
        save_model(name, tmp_path / "other")
        change_config(tmp_path / "other", **changes)
        refuse(words, tmp_path / "other")

    @pytest.mark.parametrize(
        "claimed", [{"architectures": ["BertModel"]}, {"architectures": None, "model_type": "bert"}]
    )
    def test_unknown_family(self, claimed: dict, llama: Path, refuse: Callable[..., None]) -> None:
        change_config(llama, **claimed)
        refuse(r"knows no family of models for .*[bB]ert.*it knows LlamaForCausalLM, MistralForCausalLM, ")


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"), "layers.1.self_attn.k_proj.weight is missing"),
            (lambda w: w.update(extra=torch.zeros(2)), "extra is in no such model"),
            (
                lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(39, 24)}),
                "model.layers.0.mlp.up_proj.weight is 39×24, config.json asks for 40×24",
            ),
            (
                lambda w: w.update({"model.norm.weight": torch.zeros(24, dtype=torch.int8)}),
                "model.norm.weight holds int8, wanted fp32, bf16, fp16",
            ),
            (
                lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}),
                "ties the head to the embedding, but lm_head.weight and model.embed_tokens.weight differ",
            ),
            (lambda w: [w.pop(n) for n in list(w) if ".1." in n], "; and 4 more"),
        ],
    )
    def test_weights_that_are_not_the_config_s(self, edit: Edit, words: str, llama: Path, refuse: Callable) -> None:
        change_weights(llama, edit)
        refuse(words)

    def test_a_name_twice(self, tmp_path: Path, refuse: Callable[..., None]) -> None:
        save_model("gpt2", tmp_path / "other")
        change_weights(tmp_path / "other", lambda w: w.update({"wte.weight": w["transformer.wte.weight"].clone()}))
        refuse("holds transformer.wte.weight twice", tmp_path / "other")

    def test_cut_short(self, llama: Path, refuse: Callable[..., None]) -> None:
        whole = (llama / "model.safetensors").read_bytes()
        (llama / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        refuse("is no whole safetensors file")

    def test_a_pickle(self, llama: Path, refuse: Callable[..., None]) -> None:
        class Evil:
            def __reduce__(self) -> tuple:
                return (Path.touch, (llama / "ran",))

        (llama / "model.safetensors").unlink()
        (llama / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
        refuse("pytorch_model.bin, a pickle: reading it can run code.* convert it to safetensors first")
        assert not (llama / "ran").exists()

    def test_no_weights(self, llama: Path, refuse: Callable[..., None]) -> None:
        (llama / "model.safetensors").unlink()
        refuse("has no model.safetensors")

    @pytest.mark.parametrize(("text", "words"), [("{,", "not JSON"), ("[]", "an object"), ("", "not JSON")])
    def test_a_broken_config(self, text: str, words: str, llama: Path, refuse: Callable[..., None]) -> None:
        (llama / "config.json").write_text(text)
        refuse(rf"config\.json.*{words}")

    def test_no_config(self, llama: Path, refuse: Callable[..., None]) -> None:
        (llama / "config.json").unlink()
        refuse("config.json is missing; the folder is no whole model")

    def test_a_tokenizer_of_another_model(self, llama: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        save_tokenizer(llama / "tokenizer.json", words=62)
        refuse("largest id is 61, but the embedding has 61 rows")
        save_tokenizer(llama / "tokenizer.json", words=61)
        save_tokenizer(tmp_path / "words.json", words=70)
        refuse(r"words\.json: the tokenizer's largest id is 69", tokenizer=tmp_path / "words.json")
        (tmp_path / "words.json").write_text("{}")
        refuse(r"words\.json is no tokenizer", tokenizer=tmp_path / "words.json")
        refuse("there is no tokenizer .*none.json", tokenizer=tmp_path / "none.json")


class TestPlaces:
    def test_never_writes_over_anything(self, llama: Path, tmp_path: Path) -> None:
        before = {p.name: p.read_bytes() for p in llama.iterdir()}
        with pytest.raises(CheckpointError, match="is the model itself; write to another folder"):
            import_checkpoint(llama, llama / ".." / "theirs")
        import_checkpoint(llama, tmp_path / "ours")
        with pytest.raises(CheckpointError, match="is there already; give a new folder, or empty this one"):
            import_checkpoint(llama, tmp_path / "ours")
        with pytest.raises(CheckpointError, match="is there already"):
            import_checkpoint(llama, llama / "config.json")
        assert {p.name: p.read_bytes() for p in llama.iterdir()} == before

    def test_an_empty_folder_will_do(self, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        import_checkpoint(llama, tmp_path / "empty")
        with torch.no_grad():
            assert checkpoint.load_model(tmp_path / "empty")(random_tokens()).isfinite().all()

    @pytest.mark.parametrize("source", ["nowhere", "a/b/c", "models/none.pt", "none.bin", "./none"])
    def test_no_such_source(self, source: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=f"there is no {re.escape(source)}; wanted a folder"):
            import_checkpoint(source, tmp_path / "ours")

    def test_files_go_to_their_reader(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
        (tmp_path / "model.bin").write_bytes(b"nothing")
        for name in ("model.pt", "model.bin"):
            with pytest.raises(CheckpointError, match=re.escape(name)):
                import_checkpoint(tmp_path / name, tmp_path / "ours")

    def test_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").touch()
        with pytest.raises(CheckpointError, match="is no model to import; wanted a folder"):
            import_checkpoint(tmp_path / "model.onnx", tmp_path / "ours")

    def test_unknown_dtype(self, llama: Path, tmp_path: Path) -> None:
        with pytest.raises(DeviceError, match="unknown dtype 'fp8' of weights"):
            import_checkpoint(llama, tmp_path / "ours", dtype="fp8")

    def test_another_shape_than_given(self, llama: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is not of the shape given: d_model=24, given 768; "):
            import_checkpoint(llama, tmp_path / "ours", shape=load_shape("gpt2-small"))


class TestRepositories:
    def test_downloads_no_code(self, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, object] = {}

        def download(repository: str, **options: object) -> str:
            asked.update(options, repository=repository)
            return str(llama)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        import_checkpoint("org/model", tmp_path / "ours", revision="main")
        assert (asked["repository"], asked["revision"]) == ("org/model", "main")
        patterns = asked["allow_patterns"]
        assert isinstance(patterns, list)
        assert {"*.safetensors", "config.json", "tokenizer.json"} <= set(patterns)
        assert not [p for p in patterns if p.endswith((".py", ".bin", ".pt", "*"))]

    @pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), RuntimeError(""), OSError(28, "full")])
    def test_says_what_failed(self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*given: object, **options: object) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        words = r"org/model is no folder here, and downloading it failed: .+; give a local folder"
        with pytest.raises(CheckpointError, match=words) as caught:
            importing.download("org/model")
        assert "\n" not in str(caught.value)


def test_our_own_checkpoint_is_no_foreign_one(llama: Path, tmp_path: Path) -> None:
    import_checkpoint(llama, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is a Lathe checkpoint already"):
        import_checkpoint(tmp_path / "ours", tmp_path / "again")
