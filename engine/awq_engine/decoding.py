"""One sequence read by a model, token after token over a key-value cache: the common seam of chat and scores.

`prepare_decoding` decides once per model between a decoder of our own (`fast_model`), for models that fit it, and
transformers' forward pass with our linears, for all others. A model fits when a few tokens, at the beginning and at the
end of its context, give the logits in our decoder that they give in transformers.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from awq_engine.errors import first_line
from awq_engine.fast_model import FastDecoder, FastModel, MisfitError, read_model
from awq_engine.graph_decoder import GraphDecoder
from awq_engine.key_values import ByteKeyValues, KvCache
from awq_engine.quick_head import QuickHead
from awq_engine.reading import Decoder, Reader
from awq_engine.runtime import LoadedModel
from awq_engine.steps import TritonSteps
from awq_engine.transformers_decoder import KINDS, ODD, WORDS, difference, usable_cache

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
    reader = (
        loaded.kept.pop()
        if loaded.kept
        else Reader(partial(open_decoder, loaded), whole=loaded.fast is None and loaded.cache != "pieces")
    )
    try:
        yield reader
    finally:
        if reader.sound:
            loaded.kept[:] = [reader]


def open_decoder(loaded: LoadedModel) -> Decoder:
    """A decoder for a new sequence."""
    if loaded.fast is None:
        return KINDS[loaded.cache](loaded)
    return GraphDecoder(loaded.fast) if loaded.graphs else FastDecoder(loaded.fast)


def prepare_decoding(loaded: LoadedModel, *, quick_head: bool = False, kv_cache: KvCache = "float") -> LoadedModel:
    """The same model with the fastest decoder that is right for it, and in `decoding` which one that is and why.

    Args:
        quick_head: an output head in floats may be read in 4 bits first (`quick_head`); on the CPU only.
        kv_cache: `int8` keeps keys and values in bytes (`key_values`), in our own decoder only.
    """
    found = _fastest(loaded, quick_head)
    return found if kv_cache == "float" else _with_bytes(found)


def _fastest(loaded: LoadedModel, quick_head: bool) -> LoadedModel:
    try:
        fast = read_model(loaded.model, loaded.context_length, loaded.dtype)
        _check(loaded, fast)
    except MisfitError as reason:
        return _by_transformers(loaded, str(reason))
    except ODD as error:
        return _by_transformers(loaded, f"ours failed: {first_line(error)}")
    found = replace(loaded, fast=fast, decoding="our own decoder")
    if loaded.device.type == "cuda":
        found = _with_fused_steps(found, fast) if loaded.backend == "triton" else found
        return _with_graphs(found)
    return _with_quick_head(found, fast) if quick_head else found


def _by_transformers(loaded: LoadedModel, reason: str) -> LoadedModel:
    try:
        cache = usable_cache(loaded)
    except ODD:  # it cannot be run at all: the first answer will say why
        cache = "pieces"
    return replace(loaded, fast=None, cache=cache, decoding=f"{WORDS[cache]}, as {reason}")


def _with_bytes(loaded: LoadedModel) -> LoadedModel:
    if loaded.fast is None:
        return replace(loaded, decoding=f"{loaded.decoding}; its cache stays in floats")
    fast = replace(loaded.fast, key_values=ByteKeyValues)
    return replace(loaded, fast=fast, decoding=f"{loaded.decoding}, its cache in 8 bits")


def _with_quick_head(loaded: LoadedModel, fast: FastModel) -> LoadedModel:
    head = loaded.model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return replace(loaded, decoding=f"{loaded.decoding}; its output head is quantized already")
    try:
        fast = replace(fast, quick_head=QuickHead(head))
    except ValueError as error:
        return replace(loaded, decoding=f"{loaded.decoding}; {error}")
    return replace(loaded, fast=fast, decoding=f"{loaded.decoding}, the output head in 4 bits first")


def _with_fused_steps(loaded: LoadedModel, fast: FastModel) -> LoadedModel:
    """With what lies between the products in few launches where that gives the same logits."""
    fused = replace(fast, steps=TritonSteps())
    try:
        _check(loaded, fused)
    except (MisfitError, RuntimeError, ValueError) as error:
        return replace(loaded, decoding=f"{loaded.decoding}, without fused steps: {first_line(error)}")
    return replace(loaded, fast=fused, decoding=f"{loaded.decoding} with fused steps")


def _with_graphs(loaded: LoadedModel) -> LoadedModel:
    """With each step as a CUDA graph where that gives the same logits."""
    fast = loaded.fast
    assert fast is not None
    if not fast.steady:
        return replace(loaded, decoding=f"{loaded.decoding}, without CUDA graphs: its experts are called one by one")
    try:
        _check(loaded, fast, GraphDecoder)
    except (MisfitError, RuntimeError, ValueError) as error:
        return replace(loaded, decoding=f"{loaded.decoding}, without CUDA graphs: {first_line(error)}")
    return replace(loaded, graphs=True, decoding=f"{loaded.decoding}, with CUDA graphs")


def _check(loaded: LoadedModel, fast: FastModel, kind: type[FastDecoder] = FastDecoder) -> None:
    """Raises `MisfitError` when our decoder does not compute what transformers computes."""
    for first in {0, max(0, (loaded.context_length or 0) - CHECKED)}:
        found = compare(loaded, kind(fast, first))
        if not found <= (EXACT if loaded.in_float32 else ROUNDED):
            raise MisfitError(f"its logits would differ by {found:.1e} at position {first}")


@torch.inference_mode()
def compare(loaded: LoadedModel, decoder: FastDecoder) -> float:
    """Relative difference of the logits of `decoder`, a new one, from transformers', for a few tokens.

    In a mixture rounding sends a token to another expert now and then: there most tokens count, of the prompt and of
    those after it.
    """
    model: Any = loaded.model
    tokens = [(7919 * n + 13) % model.get_input_embeddings().weight.shape[0] for n in range(CHECKED)]
    positions = torch.arange(CHECKED, device=loaded.device)[None] + decoder.first_position
    inputs = torch.tensor([tokens], device=loaded.device)
    expected = model(input_ids=inputs, position_ids=positions, use_cache=False).logits[0].float().cpu()
    prompt = CHECKED - STEPS
    found = torch.cat([decoder.read(tokens[:prompt], prompt), *(decoder.read([token]) for token in tokens[prompt:])])
    if decoder.model.plain or loaded.in_float32:
        return difference(found, expected)
    each = [difference(*pair) for pair in zip(found.split(1), expected.split(1), strict=True)]
    return max(statistics.median(each[:prompt]), statistics.median(each[prompt:]))
