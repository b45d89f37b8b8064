"""Open a model to evaluate: Lathe's decoder, with whatever weights it can hold, or Transformers' own for all others.

Axes in names: b rows, t tokens, n places, m targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lathe import documents
from lathe.errors import CheckpointError, MissingExtraError, nearest
from lathe.evals.tree import TreeBatch
from lathe.hub.importing import CONFIG, read_foreign
from lathe.model.cache import KVCache
from lathe.model.checkpoint import (
    GENERATION,
    SHAPE,
    TOKENIZER,
    build_model,
    check_device,
    check_dtype,
    load_model,
    load_stop_tokens,
    read_tokenizer,
)
from lathe.model.decoder import Decoder
from lathe.model.generate import generate
from lathe.model.loss import read_targets, target_log_probs
from lathe.shape import Shape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BACKENDS = ("auto", "lathe", "transformers")
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of a batch, if not said: enough to fill the device; more only pads more."""
WHOLE_LOGITS_BYTES = 2**28
"""What a foreign model's logits may take, which it gives at every place."""
ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>")
"""Tokens that end a text by their names, where no settings name one."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Hold targets' log-probabilities and the leads of their logits over all others, still on the device."""

    log_prob_m: Tensor
    lead_m: Tensor

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Wait for the device, and give both as arrays."""
        return self.log_prob_m.double().cpu().numpy(), self.lead_m.double().cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Hold a tokenizer, and its tokens that begin a text (`prefix`, written `begin_text` in texts) and end one."""

    tokenizer: Tokenizer
    prefix: int | None
    begin_text: str | None
    stop_tokens: tuple[int, ...]


class Scorer(Protocol):
    """Stand for a model that scores tokens.

    `branching` says whether it can compute a shared prefix once; `max_tokens` is the most it reads, None where nothing
    bounds it.
    """

    words: Words
    shape: Shape | None
    vocab_size: int
    max_tokens: int | None
    batch_tokens: int
    branching: bool
    device: torch.device

    def score(self, batch: TreeBatch) -> Scored: ...

    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]: ...


class DecoderScorer:
    """Score with Lathe's decoder: shared prefixes once, and logits only where they are asked for."""

    branching = True

    def __init__(self, decoder: Decoder, words: Words, *, max_tokens: int | None = None) -> None:
        self.decoder, self.words = decoder, words
        self.shape: Shape | None = decoder.shape
        self.vocab_size, self.device = decoder.shape.vocab_size, decoder.embedding.weight.device
        self.max_tokens: int | None = decoder.shape.max_seq_len if max_tokens is None else max_tokens
        self.batch_tokens = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])

    @torch.no_grad()
    def score(self, batch: TreeBatch) -> Scored:
        """Give the log-probabilities of a batch's targets."""
        cache = self._allocate(batch) if batch.branches else None
        states = []
        for rows in batch.prefixes:
            tokens_bt, first = self._send(rows.tokens_bt), int(rows.tree_b[0])
            if cache is None:
                x_btd = self.decoder.hidden(tokens_bt)
            else:
                x_btd = self.decoder.extend(tokens_bt, cache.rows(first, first + len(tokens_bt)))
            states.append(x_btd.flatten(0, 1))
        lengths = np.array([len(tree.prefix) for tree in batch.trees])
        for rows in batch.branches:
            assert cache is not None
            before_b = lengths[rows.tree_b]
            slots = int(before_b.max()) + rows.tokens_bt.shape[1]
            picked = cache.pick(self._send(rows.tree_b), lengths_b=self._send(before_b), slots=slots)
            longest = int((before_b + rows.lengths).max())
            states.append(self.decoder.extend(self._send(rows.tokens_bt), picked, longest=longest).flatten(0, 1))
        x_nd = torch.cat(states)[self._send(batch.places_n)]
        weight_vd = self.decoder.output_weight
        return Scored(*target_log_probs(x_nd, weight_vd, self._send(batch.at_m), self._send(batch.targets_m)))

    def _allocate(self, batch: TreeBatch) -> KVCache:
        dtype, slots = self.decoder.embedding.weight.dtype, batch.prefixes[0].tokens_bt.shape[1]
        return KVCache.allocate(
            self.decoder.shape, batch=len(batch.trees), slots=slots, dtype=dtype, device=self.device
        )

    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        """Give each position's cross-entropy in nats, [b, t]; 0 where the target is below zero."""
        return self.decoder.losses(tokens_bt, targets_bt, documents_bt)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """Continue prompts greedily."""
        return generate(self.decoder, prompts, max_new_tokens=max_new_tokens, stop_tokens=stop_tokens)

    def _send(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


class TransformersScorer:
    """Score with Transformers' model of a folder, whatever its family: a row an option, padded on the right."""

    branching = False
    shape: Shape | None = None

    def __init__(self, model: Any, words: Words, *, max_tokens: int | None = None) -> None:
        self.model, self.words, self.device = model, words, model.device
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        found = getattr(config, "max_position_embeddings", None)
        self.max_tokens: int | None = found if max_tokens is None else max_tokens
        self.batch_tokens = max(1, min(BATCH_TOKENS["cpu"], WHOLE_LOGITS_BYTES // (4 * self.vocab_size)))

    @torch.no_grad()
    def score(self, batch: TreeBatch) -> Scored:
        """Give the log-probabilities of a batch's targets."""
        parts, begin = [], 0
        for rows in batch.prefixes:
            logits_btv = self.model(input_ids=self._send(rows.tokens_bt), use_cache=False).logits
            here_n = batch.places_n[(batch.places_n >= begin) & (batch.places_n < begin + rows.tokens_bt.size)]
            parts.append(logits_btv.flatten(0, 1)[self._send(here_n - begin)].float())
            begin += rows.tokens_bt.size
        logits_nv = torch.cat(parts)
        return Scored(*read_targets(logits_nv, self._send(batch.at_m), self._send(batch.targets_m)))

    @torch.no_grad()
    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        """Give each position's cross-entropy in nats, [b, t]; 0 where the target is below zero."""
        if documents_bt is not None:
            raise CheckpointError("Transformers' models are not kept to documents here; evaluate without masks")
        logits_btv = self.model(input_ids=tokens_bt, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits_btv.float().flatten(0, 1), targets_bt.flatten(), ignore_index=-1, reduction="none"
        ).view_as(targets_bt)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """Continue prompts greedily, one after another: no padding can move a pick."""
        found = []
        for prompt in prompts:
            tokens_bt = torch.tensor([list(prompt)], device=self.device)
            all_bt = self.model.generate(
                tokens_bt, attention_mask=torch.ones_like(tokens_bt), do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, eos_token_id=list(stop_tokens) or None, pad_token_id=0,
            )  # fmt: skip
            found.append(all_bt[0, len(prompt) :].tolist())
        return found

    def _send(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def open_scorer(
    checkpoint: str | Path,
    *,
    dtype: str = "fp32",
    device: str = "cpu",
    backend: str = "auto",
    tokenizer: str | Path | None = None,
    max_tokens: int | None = None,
) -> Scorer:
    """Open a checkpoint to evaluate: Lathe's, a folder of Hugging Face's, or a file of OpenLM's, llama2.c's or GGUF.

    A foreign model whose weights Lathe's decoder can hold is read into it, without a copy on disk; others go through
    Transformers (which runs no code that comes with a model).

    Args:
        backend: auto; lathe to refuse what the decoder cannot hold; transformers for Hugging Face folders as they are.
        tokenizer: a tokenizer.json, for models that bring none.
        max_tokens: the most to read at once, if not what the model was made for.

    Raises:
        CheckpointError: no model, one without a tokenizer, or one that the backend cannot hold.
        DeviceError: a dtype or device that there is not, or too little memory.
        MissingExtraError: Transformers is needed and not installed.
    """
    if backend not in BACKENDS:
        raise CheckpointError(f"unknown backend {backend!r}{nearest(backend, BACKENDS)}")
    path = Path(checkpoint)
    if not path.exists():
        raise CheckpointError(f"there is no {path}; wanted a checkpoint's folder, or an OpenLM, llama2.c or GGUF file")
    foreign = (path / CONFIG).is_file() and not (path / SHAPE).is_file()
    if backend == "transformers":
        if not foreign:
            raise CheckpointError(
                f"{path} has no {CONFIG}: Transformers reads Hugging Face's folders; leave out --backend"
            )
        return _open_transformers(path, tokenizer, dtype=dtype, device=device, max_tokens=max_tokens)
    if path.is_dir() and not foreign:
        decoder = load_model(path, dtype=dtype, device=device)
    else:
        try:
            shape, weights = read_foreign(path)
        except CheckpointError:
            if backend == "lathe" or not foreign:
                raise
            return _open_transformers(path, tokenizer, dtype=dtype, device=device, max_tokens=max_tokens)
        decoder = build_model(shape, weights, dtype=dtype, device=device, source=str(path))
    return DecoderScorer(decoder, load_words(path, tokenizer, shape=decoder.shape), max_tokens=max_tokens)


def _open_transformers(
    path: Path, tokenizer: str | Path | None, *, dtype: str, device: str, max_tokens: int | None
) -> TransformersScorer:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise MissingExtraError(f"evaluating {path} through Transformers", extra="hf") from None
    words, place = load_words(path, tokenizer), check_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=check_dtype(dtype, place), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"Transformers cannot read {path}: {str(error).splitlines()[0]}") from None
    return TransformersScorer(model.to(place).eval(), words, max_tokens=max_tokens)


def load_words(path: Path, tokenizer: str | Path | None = None, *, shape: Shape | None = None) -> Words:
    """Load the tokenizer that is given, or else the checkpoint's own. Raises CheckpointError without one."""
    folder = path if path.is_dir() else path.parent
    file = folder / TOKENIZER if tokenizer is None else Path(tokenizer)
    if not file.is_file():
        raise CheckpointError(f"there is no tokenizer {file}; put the model's {TOKENIZER} there, or give --tokenizer")
    found = read_tokenizer(file, shape)
    begin = _find_special(folder, found, "bos")
    end = _find_special(folder, found, "eos")
    if end is None:
        end = next((i for i in map(found.token_to_id, ENDS) if i is not None), None)
    prefix = end if begin is None else begin
    stops = load_stop_tokens(folder) or (() if end is None else (end,))
    begin_text = None if prefix is None else found.id_to_token(prefix)
    return Words(tokenizer=found, prefix=prefix, begin_text=begin_text, stop_tokens=stops)


def _find_special(folder: Path, tokenizer: Tokenizer, kind: str) -> int | None:
    """Find the id of the token that begins ("bos") or ends ("eos") a text, where the tokenizer's settings name it."""
    config = folder / "tokenizer_config.json"
    named = documents.read_document(config).get(f"{kind}_token") if config.is_file() else None
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str):
        return tokenizer.token_to_id(text)
    settings = folder / GENERATION
    found = documents.read_document(settings).get(f"{kind}_token_id") if settings.is_file() else None
    return found if isinstance(found, int) else None
