"""What a model thinks of one token of a text, and how far two models are apart there; standard library only.

A whole distribution is too long to send for every token, so a score holds its `TOP` likeliest tokens and the
probability of all others together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOP = 32
LOWEST = -1000.0
"""Stands for the logarithm of a probability of 0, which JSON cannot hold."""


@dataclass(frozen=True)
class TokenScore:
    """The distribution a model has for the place of one token, and the token that came."""

    id: int
    text: str
    """What the token adds to the text; empty while a character is unfinished, so that all texts joined are the text."""
    logprob: float
    """Natural logarithm of its probability, at least `LOWEST`."""
    rank: int
    """1 for the likeliest token of all."""
    best: str
    """The likeliest token, as text."""
    top: tuple[tuple[int, float], ...]
    """Ids and log-probabilities of the `TOP` likeliest tokens, the likeliest first."""
    rest: float
    """Probability of all tokens that are not in `top`."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenScore:
        """From an entry of a worker's `scores`; `KeyError`, `TypeError` or `ValueError` when it is none."""
        top = tuple((int(token), float(logprob)) for token, logprob in data["top"])
        return cls(
            int(data["id"]), str(data["text"]), float(data["logprob"]), int(data["rank"]), str(data["best"]), top,
            float(data["rest"]),
        )  # fmt: skip


def divergence(original: TokenScore, quantized: TokenScore) -> float:
    """KL divergence of two models at one token, KL(original || quantized), in nats.

    Over the tokens that both tops name, all others counted as one token. Merging tokens can only lower the divergence,
    so this is a lower bound of that over the whole vocabulary: never negative, 0 for equal distributions, and exact
    where the vocabulary is no larger than `TOP`. What it leaves out is what goes on below the likeliest `TOP` tokens.
    """
    ours, theirs = dict(original.top), dict(quantized.top)
    shared = ours.keys() & theirs.keys()
    cells = [(ours[token], theirs[token]) for token in sorted(shared)]
    cells.append((_log_others(original, shared), _log_others(quantized, shared)))
    return max(0.0, math.fsum(math.exp(p) * (p - q) for p, q in cells))


def _log_others(score: TokenScore, shared: set[int]) -> float:
    """Log-probability of everything but `shared`."""
    mass = score.rest + math.fsum(math.exp(logprob) for token, logprob in score.top if token not in shared)
    return max(LOWEST, math.log(mass)) if mass > 0 else LOWEST
