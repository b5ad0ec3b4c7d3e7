"""Text from a loaded model, piece by piece.

What of the prompt the model has not read already (`reading`) is read in chunks, with word of each, and tokens are made
one at a time; between any two of these steps the caller can cancel. A token is often less than a character, so text is
held back until the characters it belongs to are complete, and as long as it could be the beginning of a stop string.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from awq_engine.decoding import lent_reader
from awq_engine.errors import BadInputError
from awq_engine.prompts import Message, encode_prompt, has_chat_template, stop_tokens
from awq_engine.reading import Reader
from awq_engine.runtime import LoadedModel
from awq_engine.sampling import Sampler
from awq_engine.sampling_settings import Sampling
from awq_engine.text_stream import Detokenizer, StopStrings

PREFILL_CHUNK = 512
"""Tokens of the prompt read in one step: bounds memory and the time until a cancel is noticed."""

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""The model ended or a stop string came; max_tokens; the context is full; the caller cancelled."""


@dataclass(frozen=True)
class PromptProgress:
    """How much of the prompt was read."""

    done: int
    """Tokens, from those on that were known from the request before."""
    total: int


@dataclass(frozen=True)
class GenerationStats:
    """How a generation went; the last thing `generate` yields."""

    prompt_tokens: int
    known_tokens: int
    """How many of them the model had read for the request before."""
    new_tokens: int
    """Without the token that ended the text; those of a stop string count."""
    tokens_per_second: float
    """Of the tokens after the first; 0 when there were none."""
    seconds_to_first_token: float
    seconds: float
    """From the request to the end."""
    context_used: int
    """Tokens of prompt and answer."""
    context_length: int | None
    """Tokens the model was made for; None when it does not say."""
    finish_reason: FinishReason
    seed: int
    used_template: bool
    """False when the model has no chat template and the plain text was continued."""


def generate(
    loaded: LoadedModel,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[PromptProgress | str | GenerationStats]:
    """Answer `messages`: word of the prompt's chunks, pieces of text, then one `GenerationStats`.

    Args:
        cancelled: asked between any two steps; the text so far is kept and the statistics still come.
    Raises:
        BadInputError: there is no tokenizer, the template refuses the messages, or they do not fit into the context.
    """
    sampling = sampling or Sampling()
    start = time.perf_counter()
    prompt = encode_prompt(loaded, messages)
    room = check_room(loaded, len(prompt))
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    text, stops = Detokenizer(loaded.tokenizer, prompt), StopStrings(sampling.stop)
    finish: FinishReason = "length" if sampling.max_tokens <= room else "context"
    ends, made, first, known = stop_tokens(loaded, sampling.stop), 0, start, None
    for token in _tokens(loaded, prompt, min(sampling.max_tokens, room), Sampler(sampling, seed, prompt), cancelled):
        if isinstance(token, PromptProgress):
            known = token.done if known is None else known
            yield token
            continue
        if token is None or token in ends:
            finish = "cancelled" if token is None else "stop"
            break
        made += 1
        first = time.perf_counter() if made == 1 else first
        if piece := stops.push(text.push(token)):
            yield piece
        if stops.found:
            break
    if rest := stops.push(text.flush()) + stops.flush():
        yield rest
    end = time.perf_counter()
    yield GenerationStats(
        prompt_tokens=len(prompt),
        known_tokens=known or 0,
        new_tokens=made,
        tokens_per_second=(made - 1) / (end - first) if made > 1 else 0.0,
        seconds_to_first_token=first - start,
        seconds=end - start,
        context_used=len(prompt) + made,
        context_length=loaded.context_length,
        finish_reason="stop" if stops.found else finish,
        seed=seed,
        used_template=has_chat_template(loaded.tokenizer),
    )


def check_room(loaded: LoadedModel, tokens: int) -> int:
    """How many tokens still fit behind `tokens`; `BadInputError` when none does."""
    if loaded.context_length is None:
        return 1 << 30
    if tokens >= loaded.context_length:
        raise BadInputError(
            f"The conversation has {tokens} tokens, and the context of {loaded.path.name} holds "
            f"{loaded.context_length}; shorten it or begin a new one."
        )
    return loaded.context_length - tokens


def read_prompt(
    reader: Reader, prompt: list[int], cancelled: Callable[[], bool]
) -> Iterator[PromptProgress | torch.Tensor]:
    """Read `prompt` in chunks: `PromptProgress` before and after each, then the logits [vocabulary] after it.

    Ends without the logits when the caller cancelled.
    """
    known, logits = reader.begin(prompt)
    yield PromptProgress(known, len(prompt))
    chunk = len(prompt) if reader.whole else PREFILL_CHUNK
    for at in range(known, len(prompt), chunk):
        if cancelled():
            return
        logits = reader.read(prompt[at : at + chunk], exact=True)[-1]
        yield PromptProgress(min(at + chunk, len(prompt)), len(prompt))
    assert logits is not None
    reader.mark(logits)
    yield logits


def _tokens(
    loaded: LoadedModel, prompt: list[int], limit: int, sampler: Sampler, cancelled: Callable[[], bool]
) -> Iterator[PromptProgress | int | None]:
    """Word of the prompt, then at most `limit` new tokens; None at the end when the caller cancelled."""
    with lent_reader(loaded) as reader:
        logits = None
        for step in read_prompt(reader, prompt, cancelled):
            if isinstance(step, PromptProgress):
                yield step
            else:
                logits = step
        tokens = iter(()) if logits is None else reader.draw(logits, sampler)
        for _ in range(limit):
            if cancelled() or (token := next(tokens, None)) is None:
                yield None
                return
            yield token
