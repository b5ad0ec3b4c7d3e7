"""One sequence read by a model, token after token over a key-value cache: the common seam of chat and scores.

`open_decoder` gives the way that fits the model; every way takes tokens and gives logits in float32 on the CPU.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from awq_engine.runtime import LoadedModel


class Decoder(Protocol):
    """Holds one sequence; made anew for each."""

    def read(self, tokens: list[int], keep: int = 1) -> torch.Tensor:
        """Append `tokens`; float32 [keep, vocabulary] on the CPU: the logits after each of the last `keep` of them."""
        ...


def open_decoder(loaded: LoadedModel) -> Decoder:
    """A decoder for a new sequence."""
    return TransformersDecoder(loaded)


class TransformersDecoder:
    """The model's own forward pass over transformers' cache: works for every architecture."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._device = loaded.device
        self._cache = DynamicCache(config=loaded.model.config)
        self._keeps = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1) -> torch.Tensor:
        inputs = torch.tensor([tokens], device=self._device)
        options = {"logits_to_keep": keep} if self._keeps else {}
        logits = self._model(input_ids=inputs, past_key_values=self._cache, use_cache=True, **options).logits
        return logits[0, -keep:].float().cpu()
