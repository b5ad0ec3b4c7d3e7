"""One sequence read by a model, token after token over a key-value cache: the common seam of chat and scores.

`prepare_decoding` decides once per model between a decoder of our own (`fast_model`), for models that fit it, and
transformers' forward pass with our linears, for all others. A model fits when a few tokens, at the beginning and at the
end of its context, give the logits in our decoder that they give in transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from awq_engine.errors import first_line
from awq_engine.fast_model import FastDecoder, FastModel, MisfitError, read_model
from awq_engine.graph_decoder import GraphDecoder
from awq_engine.quick_head import QuickHead
from awq_engine.reading import Decoder, Reader
from awq_engine.runtime import FLOAT_BACKEND, LoadedModel

CHECKED = 12
"""Tokens run through both: most of them as a prompt, the last `STEPS` one by one."""
STEPS = 3
EXACT, ROUNDED = 1e-4, 1e-2
"""Largest relative difference of logits: in float32, and where activations are rounded to 16 bits on the way.

A part that is missing or misread changes logits by about their own size; where both round to 16 bits, they differ by
1e-3 in a model of 22 blocks, as not every product rounds the same way for one token as for many.
"""


@contextmanager
def lent_reader(loaded: LoadedModel) -> Iterator[Reader]:
    """What the model has read so far, for one request; one that comes while it is lent begins with nothing."""
    reader = loaded.kept.pop() if loaded.kept else Reader(partial(open_decoder, loaded))
    try:
        yield reader
    finally:
        if reader.sound:
            loaded.kept[:] = [reader]


def open_decoder(loaded: LoadedModel) -> Decoder:
    """A decoder for a new sequence."""
    if loaded.fast is None:
        return TransformersDecoder(loaded)
    return GraphDecoder(loaded.fast) if loaded.graphs else FastDecoder(loaded.fast)


def prepare_decoding(loaded: LoadedModel, *, quick_head: bool = False) -> LoadedModel:
    """The same model with the fastest decoder that is right for it, and in `decoding` which one that is and why.

    Args:
        quick_head: an output head in floats may be read in 4 bits first (`quick_head`); on the CPU only.
    """
    try:
        fast = read_model(loaded.model, loaded.context_length, loaded.dtype)
        _check(loaded, fast)
    except MisfitError as reason:
        return replace(loaded, fast=None, decoding=f"transformers' forward pass, as {reason}")
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # whatever an odd model does
        return replace(loaded, fast=None, decoding=f"transformers' forward pass, as ours failed: {first_line(error)}")
    found = replace(loaded, fast=fast, decoding="our own decoder")
    if loaded.device.type == "cuda":
        return _with_graphs(found, fast)
    return _with_quick_head(found, fast) if quick_head else found


def _with_quick_head(loaded: LoadedModel, fast: FastModel) -> LoadedModel:
    head = loaded.model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return replace(loaded, decoding=f"{loaded.decoding}; its output head is quantized already")
    try:
        fast = replace(fast, quick_head=QuickHead(head))
    except ValueError as error:
        return replace(loaded, decoding=f"{loaded.decoding}; {error}")
    return replace(loaded, fast=fast, decoding=f"{loaded.decoding}, the output head in 4 bits first")


def _with_graphs(loaded: LoadedModel, fast: FastModel) -> LoadedModel:
    """With each step as a CUDA graph where that gives the same logits."""
    try:
        _check(loaded, fast, GraphDecoder)
    except (MisfitError, RuntimeError, ValueError) as error:
        return replace(loaded, decoding=f"{loaded.decoding}, without CUDA graphs: {first_line(error)}")
    return replace(loaded, graphs=True, decoding=f"{loaded.decoding}, with CUDA graphs")


class TransformersDecoder:
    """The model's own forward pass over transformers' cache: works for every architecture."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._device = loaded.device
        self._cache = DynamicCache(config=loaded.model.config)
        self._length = 0
        self._keeps = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = True) -> torch.Tensor:  # always exact
        self._length += len(tokens)
        inputs = torch.tensor([tokens], device=self._device)
        options = {"logits_to_keep": keep} if self._keeps else {}
        logits = self._model(input_ids=inputs, past_key_values=self._cache, use_cache=True, **options).logits
        return logits[0, -keep:].float().cpu()

    def rewind(self, length: int) -> bool:
        try:
            self._cache.crop(length - self._length)
        except RuntimeError:  # states of recurrent layers, and windows that left tokens behind
            return False
        self._length = length
        return True


def _check(loaded: LoadedModel, fast: FastModel, kind: type[FastDecoder] = FastDecoder) -> None:
    """Raises `MisfitError` when our decoder does not compute what transformers computes."""
    exact = loaded.dtype == torch.float32 and loaded.backend in (FLOAT_BACKEND, "reference")
    for first in {0, max(0, (loaded.context_length or 0) - CHECKED)}:
        difference = compare(loaded, kind(fast, first))
        if not difference <= (EXACT if exact else ROUNDED):
            raise MisfitError(f"its logits would differ by {difference:.1e} at position {first}")


@torch.inference_mode()
def compare(loaded: LoadedModel, decoder: FastDecoder) -> float:
    """Relative difference of the logits of `decoder`, a new one, from transformers', for a few tokens."""
    model: Any = loaded.model
    tokens = [(7919 * n + 13) % model.get_input_embeddings().weight.shape[0] for n in range(CHECKED)]
    positions = torch.arange(CHECKED, device=loaded.device)[None] + decoder.first_position
    inputs = torch.tensor([tokens], device=loaded.device)
    expected = model(input_ids=inputs, position_ids=positions, use_cache=False).logits[0].float().cpu()
    prompt = CHECKED - STEPS
    found = torch.cat([decoder.read(tokens[:prompt], prompt), *(decoder.read([token]) for token in tokens[prompt:])])
    spread = (expected - expected.mean(-1, keepdim=True)).norm()
    return float((found - expected).norm() / spread)
