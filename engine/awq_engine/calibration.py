"""From text to token windows, for calibration and for evaluation.

Documents are joined with the end-of-text token and cut into windows of exactly `seq_len` tokens, spread evenly over the
whole stream; each starts with the begin-of-text token if the tokenizer puts one. Deterministic: no random choice. Of
text that is far longer than needed only a sample is tokenized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from awq_engine.builtin_text import calibration_documents
from awq_engine.errors import BadInputError, UsageError
from awq_engine.text_sources import Documents, load_documents

CHARS_PER_TOKEN = 8
"""Characters read per token needed; text in any language has fewer characters in a token, so one pass is enough."""
EXCERPT = 1 << 14
"""Characters taken from one place of a text that is too long to be tokenized whole."""
SHORTEST = 16
"""Tokens; a shorter sequence is never suggested."""
CHARS_PER_CALL = 1 << 20
"""Characters handed to the tokenizer at once: bounds its memory."""


@dataclass(frozen=True)
class TokenStream:
    """A text as one sequence of tokens."""

    ids: list[int]
    """Documents joined by the end-of-text token, without begin-of-text tokens."""
    bos: int | None
    """The token every window starts with, if any."""
    source: str
    detail: str
    """What was not tokenized, as a clause; empty when everything was."""

    def fitting(self, seq_len: int) -> int:
        """How many disjoint windows of `seq_len` tokens the stream gives; `UsageError` if nothing fits in a window."""
        body = seq_len - (self.bos is not None)
        if body < 1:
            raise UsageError(
                f"A sequence length of {seq_len} leaves no room after the begin-of-text token; "
                f"use --seq-len {SHORTEST} or more."
            )
        return len(self.ids) // body


@dataclass(frozen=True)
class Calibration:
    """The tokens a run looks at."""

    ids: torch.Tensor
    """int64 [samples, seq_len]."""
    source: str
    tokens: int
    """In `ids`, begin-of-text tokens included."""
    dropped_tokens: int
    """Tokens of the text that are in no window."""
    detail: str


def load_calibration(spec: str, tokenizer: Any, samples: int, seq_len: int) -> Calibration:
    """Read the calibration text `spec` and cut it into `samples` windows of `seq_len` tokens.

    Raises:
        BadInputError: the text cannot be read, or has too few tokens; says how many were needed and found.
        UsageError: `seq_len` has no room for text.
        UsageError, NetworkError: from `text_sources.load_documents`.
    """
    stream = read_tokens(spec, tokenizer, samples * seq_len, calibration_documents)
    if stream.fitting(seq_len) < samples:
        raise BadInputError(_too_few(stream, samples, seq_len))
    ids = cut_windows(stream, samples, seq_len)
    used = samples * (seq_len - (stream.bos is not None))
    return Calibration(ids, stream.source, ids.numel(), len(stream.ids) - used, stream.detail)


def read_tokens(spec: str, tokenizer: Any, wanted: int, builtin: Callable[[], list[str]]) -> TokenStream:
    """Tokenize as much of the text `spec` as `wanted` tokens take, or all of it if that is not enough.

    Raises as `text_sources.load_documents`.
    """
    max_chars = CHARS_PER_TOKEN * wanted
    documents = load_documents(spec, tokenizer, max_chars, builtin)
    total = sum(map(len, documents.texts))
    some = first_documents(documents.texts, max_chars) if documents.mixed else thin(documents.texts, max_chars)
    stream = tokenize(some, tokenizer, documents, total)
    if len(stream.ids) < wanted and sum(map(len, some)) < total:
        stream = tokenize(documents.texts, tokenizer, documents, total)
    return stream


def tokenize(texts: list[str], tokenizer: Any, documents: Documents, total: int) -> TokenStream:
    """Tokenize `texts`, which were taken from `documents` of `total` characters."""
    eos = tokenizer.eos_token_id
    ids: list[int] = []
    for text in texts:
        for start in range(0, len(text), CHARS_PER_CALL):
            part = text[start : start + CHARS_PER_CALL]
            ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        if eos is not None:
            ids.append(eos)
    used = sum(map(len, texts))
    sampled = f"a sample of {used} of its {total} characters" if used < total else ""
    detail = "; ".join(clause for clause in (documents.detail, sampled) if clause)
    return TokenStream(ids, _bos(tokenizer), documents.source, detail)


def cut_windows(stream: TokenStream, samples: int, seq_len: int) -> torch.Tensor:
    """Disjoint windows spread evenly over the stream, int64 [samples, seq_len]; the stream must be long enough."""
    start = [] if stream.bos is None else [stream.bos]
    body = seq_len - len(start)
    offsets = [number * len(stream.ids) // samples for number in range(samples)]
    return torch.tensor([start + stream.ids[offset : offset + body] for offset in offsets], dtype=torch.int64)


def first_documents(texts: list[str], max_chars: int) -> list[str]:
    """The documents from the front that make up `max_chars` characters, or all of them."""
    before = accumulate(map(len, texts), initial=0)
    return [text for text, start in zip(texts, before, strict=False) if start < max_chars]


def check_vocabulary(ids: torch.Tensor, size: int) -> None:
    """Refuse token ids that the model's embedding of `size` rows does not have (`BadInputError`)."""
    largest = int(ids.max())
    if largest >= size:
        raise BadInputError(
            f"The tokenizer of this model makes token {largest}, but its embedding has only {size} rows; the tokenizer "
            "belongs to another model."
        )


def thin(texts: list[str], max_chars: int) -> list[str]:
    """`texts` whole if they are short enough, else about `max_chars` characters of excerpts spread evenly over them."""
    total = sum(map(len, texts))
    keep = max(max_chars, 8 * EXCERPT) / total if total else 1
    if keep >= 1:
        return texts
    chunks = [text[start : start + EXCERPT] for text in texts for start in range(0, len(text), EXCERPT)]
    return [chunk for number, chunk in enumerate(chunks) if int((number + 1) * keep) > int(number * keep)]


def _bos(tokenizer: Any) -> int | None:
    """The begin-of-text token, if this tokenizer starts its texts with it."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and ids[:1] == [bos] else None


def _too_few(stream: TokenStream, samples: int, seq_len: int) -> str:
    found, fewer = len(stream.ids), stream.fitting(seq_len)
    longest = found // samples + (stream.bos is not None)
    shorter = 1 << longest.bit_length() >> 1  # the power of two below
    remedies = [f"--samples {fewer}"] if fewer else []
    remedies += [f"--seq-len {shorter}"] if shorter >= SHORTEST else []
    return (
        f"The calibration text {stream.source} has {found} tokens, but {samples} samples of {seq_len} need "
        f"{samples * seq_len}; use {' or '.join([*remedies, 'a longer text'])}."
    )
