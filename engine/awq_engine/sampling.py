"""How the next token is chosen from the logits of a step.

In this order, as in transformers: repetition penalty, temperature, top-k, top-p (of what top-k left), min-p. All of it
is done by tensor operations where the logits are, and on a GPU none of them waits for the host, so that a step of a
model and its draw can be one CUDA graph.

Chance is a function of the seed, of how many tokens were drawn, and of the token it is for: every token that is left
draws a waiting time in proportion to its probability, and the first one wins. So the same seed gives the same text on
every device whatever else the process does, and logits that are rounded a little differently rarely change a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from awq_engine.errors import AwqError
from awq_engine.sampling_settings import Sampling

NUCLEUS = 512
"""Tokens looked at before a whole vocabulary is sorted, which takes a CPU longer than a small model's token."""
GOLDEN, FIRST, SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as int64."""
COLDEST = 1e-6
"""Temperature below which the likeliest token is alone anyway, and which float32 can divide by."""
NO_NUMBERS = -1
"""In the place of a token: the logits had no finite largest."""


@dataclass(frozen=True)
class DrawState:
    """What goes on from one token of a text to the next: tensors that each draw changes in place."""

    chance: torch.Tensor
    """int64 [1]: one more for each token."""
    seen: torch.Tensor
    """bool [vocabulary]: the tokens of prompt and answer."""

    @classmethod
    def begin(cls, seed: int, prompt: Sequence[int], vocabulary: int, device: torch.device) -> DrawState:
        """Before the first token; seeds next to each other share no chance."""
        seen = torch.zeros(vocabulary, dtype=torch.bool)
        seen[torch.tensor([token for token in prompt if token < vocabulary], dtype=torch.long)] = True
        return cls(_scrambled(torch.tensor([seed])).to(device), seen.to(device))

    def copy_(self, other: DrawState) -> None:
        """Take over the values of `other`."""
        self.chance.copy_(other.chance)
        self.seen.copy_(other.seen)


class Sampler:
    """Draws the tokens of one text, one after the other."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._seed, self._prompt = seed, prompt
        self._state: DrawState | None = None

    def next(self, logits: torch.Tensor) -> int:
        """The next token, of float32 `logits` [vocabulary]; `AwqError` when they are no numbers."""
        return checked_token(int(draw(logits, self.sampling, self.state(logits))))

    def state(self, logits: torch.Tensor) -> DrawState:
        """Where `logits` are; from the first call on it stays there."""
        self._state = self._state or DrawState.begin(self._seed, self._prompt, len(logits), logits.device)
        return self._state


def check_numbers(logits: torch.Tensor) -> None:
    """`AwqError` when float32 `logits` [vocabulary] are no numbers."""
    checked_token(0 if logits.max().isfinite() else NO_NUMBERS)


def checked_token(token: int) -> int:
    """What `draw` gave, once it is on the host; `AwqError` when the logits were no numbers."""
    if token == NO_NUMBERS:
        raise AwqError("The model computed no numbers (NaN); its weights are damaged, or overflow in this dtype.")
    return token


def draw(logits: torch.Tensor, sampling: Sampling, state: DrawState) -> torch.Tensor:
    """One token, int64 [1], of float32 `logits` [vocabulary]; `NO_NUMBERS` when they have no finite largest."""
    if sampling.repetition_penalty != 1:
        logits = torch.where(state.seen, _penalized(logits, sampling.repetition_penalty), logits)
    largest, likeliest = logits.max(0, keepdim=True)
    token = likeliest if sampling.temperature == 0 else _drawn(logits - largest, sampling, state.chance)
    state.chance.add_(1)
    state.seen.index_fill_(0, token, True)
    return torch.where(largest.isfinite(), token, NO_NUMBERS)


def _penalized(logits: torch.Tensor, penalty: float) -> torch.Tensor:
    """CTRL (arXiv:1909.05858), sec. 4.1, in the form in use everywhere, which also lowers negative logits."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def _drawn(logits: torch.Tensor, sampling: Sampling, chance: torch.Tensor) -> torch.Tensor:
    """int64 [1], of logits of which the largest is 0."""
    probabilities = torch.softmax(logits / max(sampling.temperature, COLDEST), dim=0)
    if sampling.top_p == 1 and not sampling.top_k:  # in no order
        kept, tokens = probabilities, torch.arange(len(logits), device=logits.device)
    else:
        kept, tokens = _likeliest(probabilities, sampling)
        before = kept.cumsum(0) - kept
        kept = kept * (before < sampling.top_p * (kept.sum() if sampling.top_k else 1.0))
    kept = kept * (kept >= sampling.min_p * kept.max())
    return tokens.index_select(0, (kept / _waits(tokens, chance)).argmax(0, keepdim=True))


def _likeliest(probabilities: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """As many tokens as may be wanted, the likeliest first: their probabilities and they themselves."""
    if sampling.top_k:
        return probabilities.topk(min(sampling.top_k, len(probabilities)))
    if probabilities.device.type == "cpu":  # elsewhere asking takes longer than sorting
        first = probabilities.topk(min(NUCLEUS, len(probabilities)))
        if first.values.sum() >= sampling.top_p or first.values[-1] < sampling.min_p * first.values[0]:
            return first
    return probabilities.sort(descending=True)


def _waits(tokens: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """float64, exponentially distributed, a number for each of `tokens` that depends on nothing but it and `chance`."""
    bits = _scrambled(_scrambled(chance) + tokens * GOLDEN)
    return -((_shifted(bits, 12).double() + 0.5) * 2.0**-52).log()


def _scrambled(x: torch.Tensor) -> torch.Tensor:
    """int64 to int64 one to one, every bit of the result depending on every bit: SplitMix64's last step."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 to the right, zeros following."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
