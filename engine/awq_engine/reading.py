"""A text read by a model, kept for the next request: a conversation goes on where it was.

Each turn's prompt begins with the turns before it, an edited question with all that came before, a regenerated answer
with the whole prompt. Only what differs is read again. Tokens are compared, not texts, so it does not matter what a
chat template does with earlier turns (many leave out their thoughts) or how an answer is cut into tokens anew.

What is kept is what a fresh reading would compute, up to rounding: a token read alone is not rounded as among others.
In float32 that is 1e-7; with activations in 16 bits 1e-3, so one in a thousand of the tokens drawn at random comes out
differently. The same request made twice in a row is answered from the very same logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch

from awq_engine.sampling import Sampler


class Decoder(ABC):
    """Holds one sequence of tokens."""

    @abstractmethod
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = False) -> torch.Tensor:
        """Append `tokens`; float32 [keep, vocabulary] on the CPU: the logits after each of the last `keep` of them.

        Args:
            exact: all logits are wanted as the model has them, also where a quick head was asked for.
        """

    @abstractmethod
    def rewind(self, length: int) -> bool:
        """Keep the first `length` tokens only. False when that cannot be: the decoder is of no more use then."""

    def draw(self, logits: torch.Tensor, sampler: Sampler) -> Iterator[int]:
        """What the text goes on with, without end: the first token of `logits` [vocabulary], those that follow it read.

        Whenever a token comes, all before it were read, and it was not.
        """
        while True:
            token = sampler.next(logits)
            yield token
            logits = self.read([token])[-1]


class Reader:
    """A decoder and what it has read."""

    def __init__(self, open_decoder: Callable[[], Decoder], *, whole: bool = False) -> None:
        """`whole`: the decoder cannot go on with several tokens, so each prompt is to be read in one piece."""
        self.whole = whole
        self._open = open_decoder
        self._decoder: Decoder | None = None
        self._tokens: list[int] = []
        self._marked: tuple[int, torch.Tensor] | None = None
        self.sound = True
        """False after a reading that broke off: what the decoder holds is not known then."""

    def begin(self, prompt: Sequence[int]) -> tuple[int, torch.Tensor | None]:
        """Forget all but what `prompt` begins with: so many of its tokens need no reading.

        The logits [vocabulary] after it come along when it was marked and is known as a whole; otherwise at least its
        last token is left to read.
        """
        known = 0 if self.whole else _common(self._tokens, prompt)
        if self._marked is not None and self._marked[0] > known:
            self._marked = None
        logits = self._marked[1] if self._marked is not None and self._marked[0] == len(prompt) else None
        known = known if logits is not None else min(known, len(prompt) - 1)
        if known < len(self._tokens) and (self.whole or self._decoder is None or not self._decoder.rewind(known)):
            self._decoder, self._marked, logits, known = None, None, None, 0
        del self._tokens[known:]
        return known, logits

    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = False) -> torch.Tensor:
        """See `Decoder`."""
        self._decoder = self._decoder or self._open()
        self.sound = False
        logits = self._decoder.read(tokens, keep, exact=exact)
        self._tokens += tokens
        self.sound = True
        return logits

    def draw(self, logits: torch.Tensor, sampler: Sampler) -> Iterator[int]:
        """See `Decoder`; `logits` follow all that was read."""
        assert self._decoder is not None
        tokens, drawn = self._decoder.draw(logits, sampler), []
        while True:
            self.sound = False
            token = next(tokens)
            self._tokens += drawn
            self.sound = True
            drawn = [token]
            yield token

    def mark(self, logits: torch.Tensor) -> None:
        """Remember `logits` [vocabulary], which follow all that was read: asked again, the same prompt has the same."""
        self._marked = len(self._tokens), logits


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
