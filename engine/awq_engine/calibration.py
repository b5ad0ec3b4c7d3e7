"""The tokens that a run looks at, and an account of where every one of them comes from.

A calibration is a text source, or several joined by `+` that share the samples evenly (`builtin+chat.jsonl`), or text
that the model itself writes (`self`). Nothing is dropped without being counted: documents that no window reaches,
documents cut by a window's end, tokens left over, and what `documents.Notes` holds of rows that could not be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from awq_engine.builtin_text import calibration_documents
from awq_engine.errors import BadInputError, UsageError
from awq_engine.text_sources import SELF, split_mix
from awq_engine.token_windows import SHORTEST, TokenStream, cut_weights, cut_windows, documents_in, read_tokens

WriteWindows = Callable[[int], torch.Tensor]
"""Has the model itself write so many windows, int64 [samples, seq_len]."""


@dataclass(frozen=True)
class SourceUse:
    """What became of one source of text."""

    source: str
    sequences: int
    tokens: int
    """In the sequences, begin-of-text tokens included."""
    documents: int
    """That the source gave, after rows that cannot be used."""
    documents_used: int
    """With at least one token in a sequence."""
    documents_cut: int
    """Of the used: not whole in the sequences."""
    dropped_tokens: int
    """Tokenized, but in no sequence."""
    weighted_tokens: int
    """In the sequences and of a weight above zero."""
    detail: str = ""
    """What was left out or done to its rows, as clauses."""


@dataclass(frozen=True)
class Calibration:
    """The tokens a run looks at."""

    ids: torch.Tensor
    """int64 [samples, seq_len]."""
    sources: tuple[SourceUse, ...]
    weights: torch.Tensor | None = None
    """How much each token counts in every statistic, float32 [samples, seq_len]; None when all count the same."""


def load_calibration(
    spec: str, tokenizer: Any, samples: int, seq_len: int, answers: bool = False, write: WriteWindows | None = None
) -> Calibration:
    """Read the calibration text `spec` and cut it into `samples` windows of `seq_len` tokens.

    Args:
        answers: of conversations only the model's own turns count.
        write: what `self` stands for.
    Raises:
        BadInputError: the text cannot be read, or has too few tokens; says how many were needed and found.
        UsageError: `seq_len` has no room for text, there are more sources than samples, or no answers to count.
        UsageError, NetworkError: from `text_sources.load_documents`.
    """
    specs = split_mix(spec)
    if samples < len(specs):
        raise UsageError(f"{len(specs)} calibration sources need at least as many samples; use --samples {len(specs)}.")
    shares = [samples // len(specs) + (number < samples % len(specs)) for number in range(len(specs))]
    parts = [
        _written(write, share) if part == SELF and write else _read(part, tokenizer, share, seq_len, answers)
        for part, share in zip(specs, shares, strict=True)
    ]
    ids, uses = torch.cat([part.ids for part in parts]), tuple(use for part in parts for use in part.sources)
    if not answers:
        return Calibration(ids, uses)
    weights = torch.cat([torch.ones(part.ids.shape) if part.weights is None else part.weights for part in parts])
    if bool((weights == 1).all()):
        raise UsageError(f"The calibration text {spec} has no conversations, so --answer-only has nothing to weigh.")
    return Calibration(ids, uses, weights)


def check_vocabulary(ids: torch.Tensor, size: int) -> None:
    """Refuse token ids that the model's embedding of `size` rows does not have (`BadInputError`)."""
    largest = int(ids.max())
    if largest >= size:
        raise BadInputError(
            f"The tokenizer of this model makes token {largest}, but its embedding has only {size} rows; the tokenizer "
            "belongs to another model."
        )


def _read(spec: str, tokenizer: Any, samples: int, seq_len: int, answers: bool) -> Calibration:
    stream = read_tokens(spec, tokenizer, samples * seq_len, calibration_documents, answers)
    if stream.fitting(seq_len) < samples:
        raise BadInputError(_too_few(stream, samples, seq_len))
    ids, weights = cut_windows(stream, samples, seq_len), cut_weights(stream, samples, seq_len)
    used, cut = documents_in(stream, samples, seq_len)
    dropped = len(stream.ids) - samples * (seq_len - (stream.bos is not None))
    weighted = ids.numel() if weights is None else int(weights.count_nonzero())
    use = SourceUse(
        stream.source, samples, ids.numel(), stream.documents, used, cut, dropped, weighted, stream.detail
    )  # fmt: skip
    return Calibration(ids, (use,), weights)


def _written(write: WriteWindows, samples: int) -> Calibration:
    ids = write(samples)
    use = SourceUse(SELF, samples, ids.numel(), samples, samples, 0, 0, ids.numel(), "written by the model itself")
    return Calibration(ids, (use,))


def _too_few(stream: TokenStream, samples: int, seq_len: int) -> str:
    found, fewer = len(stream.ids), stream.fitting(seq_len)
    longest = found // samples + (stream.bos is not None)
    shorter = 1 << longest.bit_length() >> 1  # the power of two below
    remedies = [f"--samples {fewer}"] if fewer else []
    remedies += [f"--seq-len {shorter}"] if shorter >= SHORTEST else []
    left_out = f" ({stream.detail})" if stream.detail else ""
    return (
        f"The calibration text {stream.source} has {found} tokens{left_out}, but {samples} samples of {seq_len} need "
        f"{samples * seq_len}; use {' or '.join([*remedies, 'a longer text'])}."
    )
