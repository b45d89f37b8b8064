"""The harness's tasks through our model and through its own `hf` model: the same answers on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'lathe[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lathe.errors import DeviceError, EvaluationError
from lathe.evals.harness import LatheLM, run_harness
from lathe.hub.importing import import_checkpoint

ROUNDING = 1e-5  # nats a token
CHOICES = [
    {"query": "Lily saw a big red", "choices": ["ball", "mathematics", "of the"], "gold": 0},
    {"query": "The dog was very sad because he", "choices": ["lost his toy", "Tuesday"], "gold": 0},
    {"query": "Once upon a time, there was a little girl named", "choices": ["Lily", "ran", "seven and"], "gold": 0},
    {"query": "Tom was happy. " * 60 + "He said", "choices": ["thank you", "nothing at all"], "gold": 0},
]
WORDS = [
    {"context": "Once upon a", "continuation": "time"},
    {"context": "Lily and Tom went to the park to", "continuation": "play"},
    {"context": "He was so happy that he gave his mom a big", "continuation": "hug"},
]
TEXTS = [{"text": "Once upon a time, there was a dog."}, {"text": "One day Tom saw a cat. She said hello. " * 40}]
PROMPTS = [
    {"prompt": "Once upon a time", "answer": ", there was a little girl named Lily"},
    {"prompt": "Tom and Lily ", "answer": "were friends"},
    {"prompt": "One day, a cat saw a bird. " * 50 + "The bird", "answer": "flew away"},
]
TASKS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "tiny_choices": (CHOICES, """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 1
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}]
"""),
    "tiny_words": (WORDS, """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{continuation}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""),
    "tiny_texts": (TEXTS, """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""),
    "tiny_prompts": (PROMPTS, """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [".", "!"], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match}]
"""),
}  # fmt: skip
"""A task of each kind of request; the longest items are longer than the model's 512 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of tasks whose items are files in it."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (rows, body) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = f"data_files: {{test: {data}}}, cache_dir: {folder / 'cache'}"
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{{settings}}}\ntest_split: test\nfewshot_split: test"
        )
        (folder / f"{name}.yaml").write_text(head + body)
    return folder


@pytest.fixture(scope="module")
def foreign(shared_data: Path) -> Path:
    return shared_data / "weights/stories260K_hf"


@pytest.fixture(scope="module")
def checkpoint(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories") / "lathe"
    import_checkpoint(foreign, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(foreign: Path) -> HFLM:
    return HFLM(pretrained=str(foreign), device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> LatheLM:
    return LatheLM(str(checkpoint))


def ask(model: Any, tasks: Sequence[str], folder: Path) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return dict(found)


@pytest.fixture(scope="module")
def both(ours: LatheLM, theirs: HFLM, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all tasks through both models."""
    return ask(ours, list(TASKS), folder), ask(theirs, list(TASKS), folder)


class TestAgainstHuggingFace:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_scores(self, both: tuple[dict[str, Any], dict[str, Any]], task: str) -> None:
        mine, other = (found["results"][task] for found in both)
        assert mine.keys() == other.keys()
        metrics = [key for key in mine if key not in ("alias", "name", "sample_len") and "stderr" not in key]
        assert metrics
        assert [mine[key] for key in metrics] == pytest.approx([other[key] for key in metrics], rel=1e-5)

    @pytest.mark.parametrize("task", ["tiny_choices", "tiny_words"])
    def test_the_log_probabilities(self, both: tuple[dict[str, Any], dict[str, Any]], task: str) -> None:
        for mine, other in zip(*(found["samples"][task] for found in both), strict=True):
            for (log_prob, greedy), (its, its_greedy) in zip(
                mine["filtered_resps"], other["filtered_resps"], strict=True
            ):
                assert log_prob == pytest.approx(its, abs=1e-4)
                assert greedy == its_greedy

    def test_the_texts(self, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
        mine, other = ([row["resps"] for row in found["samples"]["tiny_prompts"]] for found in both)
        assert mine == other
        assert mine[0] == [[", there was a little girl named Lily"]]

    def test_whole_texts(self, ours: LatheLM, theirs: HFLM) -> None:
        requests = [request("loglikelihood_rolling", row["text"]) for row in [*TEXTS, {"text": "<s>Once"}]]
        mine, other = (model.loglikelihood_rolling(requests, disable_tqdm=True) for model in (ours, theirs))
        tokens = [len(theirs.tok_encode(r.args[0])) for r in requests]
        assert max(tokens) > 512
        for a, b, count in zip(mine, other, tokens, strict=True):
            assert a == pytest.approx(b, abs=count * ROUNDING)

    def test_odd_contexts(self, ours: LatheLM, theirs: HFLM) -> None:
        pairs = [("", "Once upon"), ("Once ", "upon"), ("<s>Once", " upon"), ("Once\n\n", "upon"), ("", "<s>Once")]
        requests = [request("loglikelihood", *pair) for pair in pairs]
        mine = ours.loglikelihood(requests, disable_tqdm=True)
        # one by one: together, `hf` mixes up requests of the same ids that are split at other places (lm-eval 0.4.13)
        other = [theirs.loglikelihood([one], disable_tqdm=True)[0] for one in requests]
        assert [log_prob for log_prob, _ in mine] == pytest.approx([log_prob for log_prob, _ in other], abs=1e-4)

    def test_transformers_own_model(self, foreign: Path, theirs: HFLM) -> None:
        model = LatheLM(str(foreign), backend="transformers")
        requests = [request("loglikelihood", row["context"], f" {row['continuation']}") for row in WORDS]
        mine, other = (m.loglikelihood(requests, disable_tqdm=True) for m in (model, theirs))
        assert [log_prob for log_prob, _ in mine] == pytest.approx([log_prob for log_prob, _ in other], abs=1e-4)
        prompts = [request("generate_until", "Once upon a time", {"until": ".", "max_gen_toks": 24})]
        assert model.generate_until(prompts, disable_tqdm=True) == theirs.generate_until(prompts, disable_tqdm=True)


def request(kind: str, *arguments: Any, document: int | None = None) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("made", document, 1))  # type: ignore[arg-type]


class TestRequests:
    def test_no_order_or_batch_matters(self, checkpoint: Path, ours: LatheLM) -> None:
        requests = [
            request("loglikelihood", row["query"], f" {choice}", document=i)
            for i, row in enumerate(CHOICES)
            for choice in row["choices"]
        ]
        whole = [log_prob for log_prob, _ in ours.loglikelihood(requests, disable_tqdm=True)]
        small = LatheLM(str(checkpoint), batch_tokens=1)
        mixed = small.loglikelihood(requests[::-1], disable_tqdm=True)[::-1]
        assert [log_prob for log_prob, _ in mixed] == pytest.approx(whole, abs=1e-4)

    def test_a_long_text_is_cut_at_its_stop(self, ours: LatheLM) -> None:
        prompt = "Once upon a time"
        (whole,) = ours.generate_until([request("generate_until", prompt, {"max_gen_toks": 100})], disable_tqdm=True)
        stops = ["loved to", "day, she"]
        (cut,) = ours.generate_until(
            [request("generate_until", prompt, {"until": stops, "max_new_tokens": 100})], disable_tqdm=True
        )
        assert whole.startswith(cut)
        assert whole[len(cut) :].startswith(stops[0])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"do_sample": True, "temperature": 0.7}, "samples"),
            ({"temperature": 0.7}, "samples"),
            ({"num_beams": 4}, "sets num_beams"),
            ({"max_gen_toks": 512}, "asks for 512 new tokens, but the model reads 512"),
        ],
    )
    def test_what_is_not_greedy_is_refused(self, ours: LatheLM, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(EvaluationError, match=message):
            ours.generate_until([request("generate_until", "Once", settings, document=3)], disable_tqdm=True)

    def test_settings_that_change_nothing(self, ours: LatheLM) -> None:
        settings = {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 3, "until": []}
        assert ours.generate_until([request("generate_until", "Once upon a time", settings)], disable_tqdm=True)

    def test_an_answer_without_tokens(self, ours: LatheLM) -> None:
        with pytest.raises(EvaluationError, match="made, document 7"):
            ours.loglikelihood([request("loglikelihood", "Once", "", document=7)], disable_tqdm=True)


class TestChatTemplates:
    def test_none(self, ours: LatheLM) -> None:
        assert ours.chat_template(False) is None
        with pytest.raises(EvaluationError, match="has no chat template"):
            ours.chat_template(True)
        with pytest.raises(EvaluationError, match="has no chat template"):
            ours.apply_chat_template([{"role": "user", "content": "Hello"}])

    def test_the_checkpoints_own(self, foreign: Path, tmp_path: Path) -> None:
        folder = tmp_path / "chat"
        import_checkpoint(foreign, folder)
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        )
        model = LatheLM(str(folder))
        assert model.apply_chat_template([{"role": "user", "content": "Hello"}]) == "user: Hello\nassistant:"
        assert "m.role" in (model.chat_template(True) or "")


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the harness's thousands of tasks: to index them takes it seconds."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


@pytest.mark.usefixtures("own_tasks_only")
class TestRunHarness:
    def test_the_document(self, checkpoint: Path, folder: Path) -> None:
        found = run_harness(checkpoint, ["tiny_choices", "tiny_words"], include_path=folder, limit=2, shots=1)
        assert found == json.loads(json.dumps(found))
        assert set(found["results"]) == {"tiny_choices", "tiny_words"}
        assert found["n-shot"]["tiny_words"] == 1
        assert "samples" not in found

    def test_unknown_tasks(self, checkpoint: Path, folder: Path) -> None:
        with pytest.raises(EvaluationError, match="no task 'tiny_choises'; did you mean 'tiny_choices'"):
            run_harness(checkpoint, ["tiny_choises"], include_path=folder)

    def test_no_tasks(self, checkpoint: Path) -> None:
        with pytest.raises(EvaluationError, match="no tasks to run"):
            run_harness(checkpoint, [])

    def test_a_device_that_is_not_there(self, checkpoint: Path) -> None:
        with pytest.raises(DeviceError, match="cuda:99"):
            run_harness(checkpoint, ["tiny_words"], device="cuda:99")

    def test_data_that_is_not_there(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "gone.yaml").write_text(
            f"task: gone\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/gone.jsonl}}}}\n"
            "test_split: test\noutput_type: loglikelihood\ndoc_to_text: a\ndoc_to_target: b\n"
        )
        with pytest.raises(EvaluationError, match="the data of gone cannot be fetched"):
            run_harness(checkpoint, ["gone"], include_path=tmp_path)


def test_its_command_line(checkpoint: Path, folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "lathe.evals.harness", "run", "--model", "lathe", "--model_args",
            f"path={checkpoint},dtype=fp32", "--tasks", "tiny_words", "--include_path", str(folder),
            "--batch_size", "4",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny_words" in done.stdout
