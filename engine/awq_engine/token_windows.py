"""From text to token windows, for calibration and for evaluation.

Documents are joined with the end-of-text token and cut into windows of exactly `seq_len` tokens, spread evenly over the
whole stream; each starts with the begin-of-text token if the tokenizer puts one. Deterministic: no random choice. Of
text that is far longer than needed only a sample is tokenized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from awq_engine.documents import Document, Documents
from awq_engine.errors import BadInputError, UsageError, last_clause
from awq_engine.text_sources import load_documents

CHARS_PER_TOKEN = 8
"""Characters read per token needed; text in any language has fewer characters in a token, so one pass is enough."""
EXCERPT = 1 << 12
"""Characters taken from one place of a text that is too long to be tokenized whole."""
SHORTEST = 16
"""Tokens; a shorter sequence is never suggested."""
CHARS_PER_CALL = 1 << 20
"""Characters handed to the tokenizer at once: bounds its memory."""
OTHER_WEIGHT = 0.0
"""What a token outside the answers counts, where only answers are to."""


@dataclass(frozen=True)
class TokenStream:
    """A text as one sequence of tokens."""

    ids: list[int]
    """Documents joined by the end-of-text token, without begin-of-text tokens."""
    bos: int | None
    """The token every window starts with, if any."""
    source: str
    detail: str
    """What was not read or tokenized, as clauses; empty when everything was."""
    weights: list[float] | None = None
    """How much each token counts; None when all count the same."""
    documents: int = 1
    """In the source, used or not."""
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    """For each document or excerpt: the place of its first token, and its number in the source."""

    def fitting(self, seq_len: int) -> int:
        """How many disjoint windows of `seq_len` tokens the stream gives; `UsageError` if nothing fits in a window."""
        body = seq_len - (self.bos is not None)
        if body < 1:
            raise UsageError(
                f"A sequence length of {seq_len} leaves no room after the begin-of-text token; "
                f"use --seq-len {SHORTEST} or more."
            )
        return len(self.ids) // body


def read_tokens(
    spec: str, tokenizer: Any, wanted: int, builtin: Callable[[], Sequence[Any]], answers: bool = False
) -> TokenStream:
    """Tokenize as much of the text `spec` as `wanted` tokens take, or all of it if that is not enough.

    With `answers`, tokens of a conversation outside the model's turns count less. Raises as `load_documents`, and
    `UsageError` for a tokenizer that cannot tell which characters a token stands for.
    """
    max_chars = CHARS_PER_TOKEN * wanted
    documents = load_documents(spec, tokenizer, max_chars, builtin, answers)
    some = first_documents(documents.items, max_chars) if documents.mixed else thin(documents.items, max_chars)
    stream = tokenize(some, tokenizer, documents, answers)
    if len(stream.ids) < wanted and _characters(some) < _characters(documents.items):
        stream = tokenize(documents.items, tokenizer, documents, answers)
    return stream


def tokenize(items: list[Document], tokenizer: Any, documents: Documents, answers: bool) -> TokenStream:
    """Tokenize `items`, which were taken from `documents`."""
    if answers and not getattr(tokenizer, "is_fast", False):
        raise UsageError("This model's tokenizer cannot tell which text a token stands for; leave out --answer-only.")
    ids: list[int] = []
    weights: list[float] = []
    starts: list[tuple[int, int]] = []
    for item in items:
        starts.append((len(ids), item.number))
        for token, weight in _tokens(item, tokenizer, answers):
            ids.append(token)
            weights.append(weight)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            weights.append(1.0 if item.answers is None else OTHER_WEIGHT)
    used, total = _characters(items), _characters(documents.items)
    sampled = f"a sample of {used} of its {total} characters" if used < total else ""
    detail = "; ".join(clause for clause in (documents.detail, sampled) if clause)
    return TokenStream(
        ids, _bos(tokenizer), documents.source, detail, weights if answers else None, len(documents.items),
        tuple(starts),
    )  # fmt: skip


def _tokens(item: Document, tokenizer: Any, answers: bool) -> Iterator[tuple[int, float]]:
    """Each token of a document with what it counts."""
    for start in range(0, len(item.text), CHARS_PER_CALL):
        part = item.excerpt(start, start + CHARS_PER_CALL)
        options = {"return_offsets_mapping": True} if answers else {}
        encoded = _encoded(part.text, tokenizer, options)
        if part.answers is None:
            yield from ((token, 1.0) for token in encoded["input_ids"])
            continue
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            inside = any(a < last and first < b for a, b in part.answers)
            yield token, 1.0 if inside else OTHER_WEIGHT


def _encoded(text: str, tokenizer: Any, options: dict[str, Any]) -> Any:
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False, **options)
    except Exception as error:  # it is made of a model's files, which may be damaged
        raise BadInputError(f"The model's tokenizer fails on this text: {last_clause(error)}") from error


def offsets(stream: TokenStream, samples: int) -> list[int]:
    """Where in the stream each of `samples` windows begins."""
    return [number * len(stream.ids) // samples for number in range(samples)]


def cut_windows(stream: TokenStream, samples: int, seq_len: int) -> torch.Tensor:
    """Disjoint windows spread evenly over the stream, int64 [samples, seq_len]; the stream must be long enough."""
    start = [] if stream.bos is None else [stream.bos]
    body = seq_len - len(start)
    rows = [start + stream.ids[offset : offset + body] for offset in offsets(stream, samples)]
    return torch.tensor(rows, dtype=torch.int64)


def cut_weights(stream: TokenStream, samples: int, seq_len: int) -> torch.Tensor | None:
    """What the tokens of the same windows count, float32 [samples, seq_len]; None when all count the same."""
    if stream.weights is None:
        return None
    start = [] if stream.bos is None else [1.0]  # the channels that fire at a text's first token serve every answer
    body = seq_len - len(start)
    return torch.tensor([start + stream.weights[offset : offset + body] for offset in offsets(stream, samples)])


def documents_in(stream: TokenStream, samples: int, seq_len: int) -> tuple[int, int]:
    """How many documents have tokens in the windows, and how many of these are not whole in them."""
    body = seq_len - (stream.bos is not None)
    covered = [0] * (len(stream.ids) + 1)
    for offset in offsets(stream, samples):
        covered[offset + 1 : offset + body + 1] = [1] * body
    before = list(accumulate(covered))
    stops = [start for start, _ in stream.starts[1:]] + [len(stream.ids)]
    seen: dict[int, tuple[int, int]] = {}
    for (start, number), stop in zip(stream.starts, stops, strict=True):
        inside, length = seen.get(number, (0, 0))
        seen[number] = inside + before[stop] - before[start], length + stop - start
    used = [(inside, length) for inside, length in seen.values() if inside]
    return len(used), sum(inside < length for inside, length in used)


def first_documents(items: list[Document], max_chars: int) -> list[Document]:
    """The documents from the front that make up `max_chars` characters, or all of them."""
    before = accumulate((len(item.text) for item in items), initial=0)
    return [item for item, start in zip(items, before, strict=False) if start < max_chars]


def thin(items: list[Document], max_chars: int) -> list[Document]:
    """`items` whole if they are short enough, else about `max_chars` characters of excerpts spread evenly over them."""
    total = _characters(items)
    keep = max(max_chars, 8 * EXCERPT) / total if total else 1
    if keep >= 1:
        return items
    chunks = [item.excerpt(start, start + EXCERPT) for item in items for start in range(0, len(item.text), EXCERPT)]
    return [chunk for number, chunk in enumerate(chunks) if int((number + 1) * keep) > int(number * keep)]


def _characters(items: list[Document]) -> int:
    return sum(len(item.text) for item in items)


def _bos(tokenizer: Any) -> int | None:
    """The begin-of-text token, if this tokenizer starts its texts with it."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and ids[:1] == [bos] else None
