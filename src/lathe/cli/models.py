"""Commands that run a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lathe.cli.bench import Engine
from lathe.cli.plans import Dtype

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prompts = Annotated[tuple[str, ...], arg(help="texts to continue; - reads one from standard input", metavar="TEXT…")]


def generate(
    checkpoint: Positional[Path],
    prompt: Prompts,
    max_new_tokens: int = 128,
    greedy: bool = False,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int = 0,
    engine: Engine = "eager",
    dtype: Dtype = "fp32",
    device: str = "cpu",
    ignore_stop: bool = False,
    json: bool = False,
) -> None:
    """Continue texts with a checkpoint; the text of a single prompt appears as it is made.

    Example: lathe generate runs/tiny --prompt "Once upon a time" --greedy

    Args:
        checkpoint: a Lathe checkpoint's folder (see `lathe import` for others).
        max_new_tokens: tokens to make for each text, at most.
        greedy: take the most probable token each time; temperature, top_k and top_p then do nothing.
        temperature: divides the logits before drawing.
        top_k: draw among the k most probable tokens only.
        top_p: draw among the fewest tokens whose probabilities reach this.
        seed: of the draws.
        engine: eager, compile (half a minute to two the first time, then kept), or graph (CUDA graphs).
        dtype: of the weights; int8 and int4 quantise weights only.
        device: cpu, cuda, cuda:1, …
        ignore_stop: go on after the model's stop tokens.
        json: print one JSON line a text: prompt, text, new tokens.
    """
    import json as encoder

    from lathe.cli.terminal import need
    from lathe.model.checkpoint import load_model, load_shape_of, load_stop_tokens, load_tokenizer
    from lathe.model.generate import generate as continue_prompts
    from lathe.model.sampling import Sampling

    need(prompt, "--prompt", "a text to continue")
    sampling = Sampling() if greedy else Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    tokenizer = load_tokenizer(checkpoint, load_shape_of(checkpoint))
    texts = [sys.stdin.read() if text == "-" else text for text in prompt]
    prompts = [tokenizer.encode(text).ids for text in texts]
    streams = [Stream(tokenizer, ids) for ids in prompts]
    alone = len(prompts) == 1 and not json

    def show(i: int, token: int) -> None:
        begun = streams[i].ids[len(prompts[i]) :]
        text = streams[i].add(token)
        if alone:
            print(text if begun else texts[0] + text, end="", flush=True)

    new = continue_prompts(
        load_model(checkpoint, dtype=dtype, device=device), prompts, max_new_tokens=max_new_tokens, sampling=sampling,
        stop_tokens=() if ignore_stop else load_stop_tokens(checkpoint), engine=engine, seed=seed, on_token=show,
    )  # fmt: skip
    if alone:
        print(streams[0].rest())
        return
    for text, stream, tokens in zip(texts, streams, new, strict=True):
        continued = stream.shown + stream.rest()
        print(encoder.dumps({"prompt": text, "text": continued, "tokens": tokens}) if json else f"{text}{continued}\n")


class Stream:
    """Turn tokens into text as they come; a character that is not whole yet waits for its next token."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self.tokenizer, self.ids, self.shown = tokenizer, list(prompt), ""
        self.start = len(tokenizer.decode(self.ids))  # with the prompt: the first new token may begin with a space

    def add(self, token: int) -> str:
        """Take one more token, and give the text that is new."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)[self.start + len(self.shown) :]
        return "" if text.endswith("\ufffd") else self._show(text)

    def rest(self) -> str:
        """Give what was held back."""
        return self._show(self.tokenizer.decode(self.ids)[self.start + len(self.shown) :])

    def _show(self, text: str) -> str:
        self.shown += text
        return text
