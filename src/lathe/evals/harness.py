"""Run the tasks of EleutherAI's lm-evaluation-harness on any checkpoint that Lathe scores.

`run_harness` is one call. The harness's own command line knows the model as `lathe` once this module is imported, which
`python -m lathe.evals.harness` does and then hands over to it:

    python -m lathe.evals.harness run --model lathe --model_args path=runs/small --tasks arc_easy,hellaswag

Texts become ids as for the harness's `hf` model, windows too, so the two differ by rounding alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from lathe.errors import EvaluationError, explain_import, nearest
from lathe.evals.continuing import continue_texts
from lathe.evals.encode import encode_texts
from lathe.evals.score import Progress, score_pairs, score_tokens
from lathe.evals.scorer import Scorer, open_scorer
from lathe.evals.tree import Ids, Option
from lathe.model.checkpoint import check_device

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise explain_import(error, feature="the evaluation harness") from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DEFAULT_DEVICE = "cuda:0"
"""What the harness's command line asks of every model, where its user asks for nothing."""
MAX_NEW_TOKENS = 256
"""How many tokens a task gets that asks for no number, as from the harness's `hf` model."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the number of tokens to generate; the first one given counts."""
GREEDY = ("do_sample", "temperature", "top_p", "top_k")
"""Settings that change nothing where the most probable token is taken."""


def run_harness(
    checkpoint: str | Path,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_tokens: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    samples: bool = False,
) -> dict[str, Any]:
    """Run tasks of the harness, and give its document of results, which is plain JSON.

    Args:
        tasks: names of tasks, groups or tags, or paths of their YAML files.
        include_path: a folder with more tasks.
        shots: examples in front of each question; each task's own number if not given.
        limit: how many items of each task, from its beginning.
        samples: also give each item with its requests and what the model answered.

    Raises:
        EvaluationError: an unknown task, data that cannot be fetched, a task that asks for what the model cannot do.
        CheckpointError: a model that cannot be read.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    if not tasks:
        raise EvaluationError("no tasks to run; give names of the harness's: `lm_eval ls tasks` lists them")
    check_device(device)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise EvaluationError(f"the harness has no task {name!r}{nearest(name, manager.all_tasks)}")
    model = LatheLM(str(checkpoint), dtype=dtype, device=device, batch_tokens=batch_tokens)
    with _explain_data(tasks):
        found = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, log_samples=samples
        )
    return json.loads(json.dumps(found, default=handle_non_serializable))


@contextmanager
def _explain_data(tasks: Sequence[str]) -> Iterator[None]:
    """Say what to do where a task's data is out of reach: the harness fetches it when it makes the task."""
    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        raise EvaluationError(
            f"the data of {', '.join(tasks)} cannot be fetched ({error}); the harness loads it from the Hugging Face "
            "Hub or its cache: run once with a network, or give tasks whose YAML names local data_files"
        ) from error


class LatheLM(LM):
    """Answer the harness's requests with a checkpoint: Lathe's, or one that transformers reads.

    The harness's command line gives every model a `batch_size` and a device, cuda:0 if none was asked for. Batches here
    hold so many tokens instead (`batch_tokens`), and no score depends on them; without CUDA that device is the
    processor, as for the harness's `hf` model.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "fp32",
        device: str | None = None,
        backend: str = "auto",
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.batch_tokens = batch_tokens
        if device is None or (device == DEFAULT_DEVICE and not torch.cuda.is_available()):
            device = "cpu"
        self.scorer: Scorer = open_scorer(path, dtype=dtype, device=device, backend=backend)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations after their contexts: sums in nats, and whether each token was the most probable."""
        items = _group(requests)
        questions = [[cast("tuple[str, str]", requests[i].args) for i in item] for item in items]
        names = [_name(requests[item[0]]) for item in items]
        with _bar("Scoring", disable=disable_tqdm) as progress:
            scores = score_pairs(
                self.scorer, questions, batch_tokens=self.batch_tokens, names=names, progress=progress
            )  # fmt: skip
        found: dict[int, tuple[float, bool]] = {}
        for item, of_item in zip(items, scores, strict=True):
            found |= {i: (score.log_prob, score.greedy) for i, score in zip(item, of_item, strict=True)}
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows that overlap by one token, the last one by as many as it has room for."""
        windows = [self._windows(request.args[0]) for request in requests]
        questions = [[window] for of_text in windows for window in of_text]
        names = [_name(request) for request, of_text in zip(requests, windows, strict=True) for _ in of_text]
        with _bar("Scoring texts", disable=disable_tqdm) as progress:
            scores = iter(
                score_tokens(self.scorer, questions, batch_tokens=self.batch_tokens, names=names, progress=progress)
            )
        return [sum(next(scores)[0].log_prob for _ in of_text) for of_text in windows]

    def _windows(self, text: str) -> list[Option]:
        ids = encode_texts(self.scorer, [text])[text]
        if self.scorer.words.prefix is None:
            raise EvaluationError(
                "to score a whole text, some token must stand in front of it, and the tokenizer names none that begins "
                "or ends texts; give the checkpoint a generation_config.json with bos_token_id or eos_token_id"
            )
        window_tokens = self.scorer.max_tokens or len(ids) + 1
        windows = get_rolling_token_windows(
            list(ids), prefix_token=self.scorer.words.prefix, max_seq_len=window_tokens, context_len=1
        )
        return [(tuple(context), tuple(rest)) for context, rest in map(make_disjoint_window, windows)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts with the most probable tokens until a stop text, which is left out."""
        asked = [_read_settings(request) for request in requests]
        found: dict[int, str] = {}
        for settings in dict.fromkeys(asked):
            rows = [i for i, given in enumerate(asked) if given == settings]
            prompts = [self._prompt(requests[i], max_new_tokens=settings.max_new_tokens) for i in rows]
            with _bar("Generating", disable=disable_tqdm) as progress:
                texts = continue_texts(
                    self.scorer, prompts, max_new_tokens=settings.max_new_tokens, stop=settings.stop, progress=progress
                )
            found |= dict(zip(rows, texts, strict=True))
        return [found[i] for i in range(len(requests))]

    def _prompt(self, request: Instance, *, max_new_tokens: int) -> Ids:
        """Encode a prompt, cut on the left so that there is room for what follows."""
        text, limit = request.args[0], self.scorer.max_tokens
        ids = encode_texts(self.scorer, [text])[text]
        if limit is not None and max_new_tokens >= limit:
            raise EvaluationError(
                f"{_name(request)} asks for {max_new_tokens} new tokens, but the model reads {limit} in all, prompt "
                "included; lower max_gen_toks in the task's generation_kwargs"
            )
        return ids if limit is None else ids[max_new_tokens - limit :]

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer in the harness's cache of requests."""
        return str(Path(self.path).resolve()).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Give the checkpoint's chat template, None where none is asked for. Raises EvaluationError without one."""
        return self._chat.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as one text. Raises EvaluationError for a checkpoint without a chat template."""
        return cast(
            str,
            self._chat.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            ),
        )

    @cached_property
    def _chat(self) -> Any:
        """Open the tokenizer with its chat template, by transformers: templates use its functions."""
        try:
            from transformers import PreTrainedTokenizerFast
        except ImportError as error:
            raise explain_import(error, feature="a chat template") from None
        found = PreTrainedTokenizerFast.from_pretrained(self.path)
        if not found.chat_template:
            raise EvaluationError(
                f"{self.path} has no chat template, neither in tokenizer_config.json nor as chat_template.jinja; leave "
                "out --apply_chat_template, or put the one it was trained with there"
            )
        return found


register_model("lathe")(LatheLM)  # as a decorator it would hide the class's type


def _group(requests: Sequence[Instance]) -> list[list[int]]:
    """Put the requests of each document together, in order: they share what they begin with, mostly."""
    found: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        known = request.doc_id is not None
        found.setdefault((request.task_name, request.doc_id) if known else i, []).append(i)
    return list(found.values())


def _name(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"


class Settings(NamedTuple):
    """Hold how a request is to be continued."""

    stop: tuple[str, ...]
    max_new_tokens: int


def _read_settings(request: Instance) -> Settings:
    """Read how to continue a request's text. Raises EvaluationError for what greedy choice is not."""
    given = dict(cast("tuple[str, dict[str, Any]]", request.args)[1])
    until = given.pop("until", None) or ()
    lengths = [length for name in LENGTHS if (length := given.pop(name, None)) is not None]
    faults = [f"sets {name}" for name in given if name not in GREEDY]
    if given.get("do_sample", float(given.get("temperature") or 0) > 0):
        faults = ["samples"]
    if faults:
        raise EvaluationError(
            f"{_name(request)} {faults[0]}; Lathe takes the most probable token: set do_sample to false and leave out "
            f"all but until, {LENGTHS[0]} and temperature in the task's generation_kwargs"
        )
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Settings(tuple(one for one in stop if one), int(lengths[0]) if lengths else MAX_NEW_TOKENS)


@contextmanager
def _bar(what: str, *, disable: bool) -> Iterator[Progress]:
    """Show a bar as the harness does."""
    with tqdm(desc=what, disable=disable) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def main() -> None:
    """Run the harness's own command line, which knows `--model lathe` by this module."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
