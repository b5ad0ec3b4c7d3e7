"""How the next token is chosen from the logits of a step.

In this order, as in transformers: repetition penalty, temperature, top-k, top-p (of what top-k left), min-p. Sampling
is done on the CPU, from logits in float32 and with a generator of its own: the same seed gives the same text whatever
else the process does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from awq_engine.errors import AwqError
from awq_engine.sampling_settings import Sampling

NUCLEUS = 512
"""Tokens looked at before a whole vocabulary is sorted, which takes longer than a GPU needs for a token."""


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
