"""How the next token is chosen from the logits of a step.

In this order, as in transformers: repetition penalty, temperature, top-k, top-p (of what top-k left), min-p. Sampling
is done on the CPU, from logits in float32 and with a generator of its own: the same seed gives the same text whatever
else the process does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from awq_engine.errors import AwqError, UsageError

NUCLEUS = 512
"""Tokens looked at before a whole vocabulary is sorted, which takes longer than a GPU needs for a token."""
MAX_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn and where it ends."""

    max_tokens: int = 512
    """Most new tokens."""
    temperature: float = 0.7
    """0 takes the likeliest token always."""
    top_p: float = 0.95
    """Choose among the likeliest tokens that together have this probability; 1 for all."""
    seed: int | None = None
    """None draws one; `GenerationStats.seed` tells which."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability; 0 for none."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and of the answer so far less likely (above 1) or more likely (below)."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""

    def __post_init__(self) -> None:
        """Raises `UsageError` for settings that make no sense."""
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; it must be between 0 (no randomness) and 100.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1.")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1, or 0 for all tokens.")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; it must be between 0 and 1.")
        if not 0 < self.repetition_penalty <= 10:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and at most 10.")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UsageError(
                f"stop holds {len(self.stop)} texts; at most {MAX_STOPS} are taken, and none may be empty."
            )


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int] = ()) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = set(prompt)

    def next(self, logits: torch.Tensor) -> int:
        """The next token; `logits` is float32 [vocabulary] on the CPU. `AwqError` when they are no numbers."""
        if self._sampling.repetition_penalty != 1:
            logits = penalize(logits, sorted(self._seen), self._sampling.repetition_penalty)
        token = sample(logits, self._sampling, self._generator)
        self._seen.add(token)
        return token


def check_numbers(logits: torch.Tensor) -> float:
    """The largest of float32 `logits` [vocabulary]; `AwqError` when they are no numbers."""
    largest = float(logits.max())
    if not math.isfinite(largest):
        raise AwqError("The model computed no numbers (NaN); its weights are damaged, or overflow in this dtype.")
    return largest


def penalize(logits: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits with those of the tokens `seen` divided by `penalty` where positive, multiplied where not.

    CTRL (arXiv:1909.05858), sec. 4.1, in the form in use everywhere, which also lowers negative logits.
    """
    tokens = torch.tensor([token for token in seen if token < len(logits)], dtype=torch.long)
    found = logits[tokens]
    return logits.index_copy(0, tokens, torch.where(found > 0, found / penalty, found * penalty))


def sample(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token of float32 `logits` [vocabulary], without the penalty; `AwqError` when they are no numbers."""
    largest = check_numbers(logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax((logits - largest) / sampling.temperature, dim=0)
    if sampling.top_p == 1 and not sampling.top_k and not sampling.min_p:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    likeliest, tokens = probabilities.topk(min(sampling.top_k or NUCLEUS, len(probabilities)))
    if not sampling.top_k and _goes_on(likeliest, sampling):
        likeliest, tokens = probabilities.sort(descending=True)
    if sampling.top_k:
        likeliest = likeliest / likeliest.sum()
    before = likeliest.cumsum(0) - likeliest
    kept = (before < sampling.top_p) & (likeliest >= sampling.min_p * likeliest[0])
    kept[0] = True
    return int(tokens[torch.multinomial(likeliest * kept, 1, generator=generator)])


def _goes_on(likeliest: torch.Tensor, sampling: Sampling) -> bool:
    """Whether tokens behind these, sorted by probability, may be wanted too."""
    reached = likeliest.sum() >= sampling.top_p or likeliest[-1] < sampling.min_p * likeliest[0]
    return not bool(reached)
