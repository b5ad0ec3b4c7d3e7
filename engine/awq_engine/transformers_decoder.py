"""Decoding with a model's own forward pass over transformers' cache: for every architecture, as far as its cache goes.

Not every architecture can go on from its cache with several tokens at once (recurrent states are begun anew then), and
some give other logits from it altogether. So a few tokens are read in pieces when a model is loaded, and what does not
agree with reading them all at once is not done.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, Literal

import torch
from transformers import DynamicCache

from awq_engine.reading import Decoder
from awq_engine.runtime import LoadedModel

Cache = Literal["pieces", "whole", "none"]
"""What a cache is good for: to go on with any number of tokens, with one, or not at all."""
PROMPT, REST, SINGLE = 5, 4, 3
"""Tokens read in the check: a prompt in two pieces, or at once, then some one by one."""
SIMILAR, EXACT = 0.05, 1e-3
"""Largest relative difference of logits, where activations are rounded to 16 bits on the way and where they are not.

A cache that is not usable changes them by 0.01 to their own size. Rounding to 16 bits does by 1e-3 to 2e-2, and where
it sends a token to another expert by a few hundredths; in float32 a recurrence makes 2e-4 of it, most models 1e-6."""
ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Whatever goes wrong in a forward pass that is called in a way it does not know."""


class RereadDecoder(Decoder):
    """Reads the whole text again for every token: slow, and right for whatever can be run at all."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._device = loaded.device
        self._tokens: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = True) -> torch.Tensor:  # always exact
        self._tokens += tokens
        inputs = torch.tensor([self._tokens], device=self._device)
        return self._model(input_ids=inputs, use_cache=False).logits[0, -keep:].float().cpu()

    def rewind(self, length: int) -> bool:
        del self._tokens[length:]
        return True


class TransformersDecoder(Decoder):
    """Goes on from the cache, with any number of tokens."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._device = loaded.device
        parameters = inspect.signature(loaded.model.forward).parameters
        self._name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._keeps = "logits_to_keep" in parameters
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self._cache = DynamicCache(config=self._model.config)
        self._length = 0

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = True) -> torch.Tensor:  # always exact
        self._length += len(tokens)
        inputs = torch.tensor([tokens], device=self._device)
        options: dict[str, Any] = {self._name: self._cache}
        if self._keeps:
            options["logits_to_keep"] = keep
        logits = self._model(input_ids=inputs, use_cache=True, **options).logits
        return logits[0, -keep:].float().cpu()

    def rewind(self, length: int) -> bool:
        try:
            self._cache.crop(length - self._length)
        except ODD:  # states of recurrent layers, windows that left tokens behind, caches that cannot do it
            return False
        self._length = length
        return True


class WholeDecoder(TransformersDecoder):
    """Goes on from the cache with single tokens; where several come, everything is read again together with them."""

    def begin(self) -> None:
        super().begin()
        self._tokens: list[int] = []

    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = True) -> torch.Tensor:
        if len(tokens) > 1 and self._tokens:
            tokens = self._tokens + tokens
            self.begin()
        self._tokens += tokens
        return super().read(tokens, keep, exact=exact)

    def rewind(self, length: int) -> bool:
        return False


KINDS: dict[Cache, type[TransformersDecoder] | type[RereadDecoder]] = {
    "pieces": TransformersDecoder, "whole": WholeDecoder, "none": RereadDecoder
}  # fmt: skip
WORDS: dict[Cache, str] = {
    "pieces": "transformers' forward pass",
    "whole": "transformers' forward pass, each prompt as a whole",
    "none": "transformers' forward pass over the whole text for every token (slow: it has no cache that can be used)",
}


def usable_cache(loaded: LoadedModel) -> Cache:
    """What the cache of this model gives the same logits for as reading everything at once."""
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])  # pyright: ignore
    tokens = [(7919 * n + 13) % vocabulary for n in range(PROMPT + REST + SINGLE)]
    expected, other = (
        RereadDecoder(loaded).read([*tokens[:-1], last], keep=len(tokens)) for last in (tokens[-1], tokens[0])
    )
    if difference(other[:-1], expected[:-1]) > EXACT:  # it looks at tokens to come: what was read of a text changes
        return "none"
    tolerance = EXACT if loaded.in_float32 else SIMILAR
    pieces: dict[Cache, list[int]] = {"pieces": [PROMPT, REST], "whole": [PROMPT + REST]}
    for cache, lengths in pieces.items():
        with contextlib.suppress(*ODD):
            if difference(_read(KINDS[cache](loaded), tokens, [*lengths, *[1] * SINGLE]), expected) <= tolerance:
                return cache
    return "none"


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of logits [n, vocabulary], relative to their spread over the vocabulary."""
    return float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())


def _read(decoder: Decoder, tokens: list[int], lengths: list[int]) -> torch.Tensor:
    """The logits after every token, read in pieces of these lengths."""
    found, rest = [], tokens
    for length in lengths:
        found.append(decoder.read(rest[:length], keep=length))
        rest = rest[length:]
    return torch.cat(found)
