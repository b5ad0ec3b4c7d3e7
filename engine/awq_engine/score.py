"""How likely a model finds a given answer, token by token: what two models are compared by inside a chat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from awq_engine.decoding import lent_reader
from awq_engine.errors import BadInputError
from awq_engine.generate import PromptProgress, read_prompt
from awq_engine.prompts import Message, encode_answer, encode_prompt
from awq_engine.runtime import LoadedModel
from awq_engine.sampling import check_numbers
from awq_engine.text_stream import Detokenizer
from awq_engine.token_scores import LOWEST, TOP, TokenScore

SCORE_CHUNK = 32
"""Tokens of the answer read in one step; bounds the logits in memory, one row of the vocabulary each."""


@dataclass(frozen=True)
class ScoreStats:
    """How a scoring went; the last thing `score` yields."""

    prompt_tokens: int
    scored_tokens: int
    seconds: float
    finish_reason: Literal["complete", "cancelled"]


def score(
    loaded: LoadedModel,
    messages: Sequence[Message],
    answer: str,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[PromptProgress | list[TokenScore] | ScoreStats]:
    """Score `answer` as the reply to `messages`: the prompt's progress, the tokens' scores in order, the statistics.

    Raises:
        BadInputError: as `generate`; also when the answer is empty or does not fit into the context.
    """
    start, made = time.perf_counter(), 0
    prompt = encode_prompt(loaded, messages)
    tokens = encode_answer(loaded, messages, prompt, answer)
    _check_fits(loaded, len(prompt) + len(tokens))
    texts = Detokenizer(loaded.tokenizer, prompt)
    for step in _logits(loaded, prompt, tokens, cancelled):
        if isinstance(step, PromptProgress):
            yield step
            continue
        placed = tokens[made : made + len(step)]
        yield [_scored(loaded, row, token, texts.push(token)) for row, token in zip(step, placed, strict=True)]
        made += len(placed)
    finish = "complete" if made == len(tokens) else "cancelled"
    yield ScoreStats(len(prompt), made, time.perf_counter() - start, finish)


def _logits(
    loaded: LoadedModel, prompt: list[int], tokens: list[int], cancelled: Callable[[], bool]
) -> Iterator[PromptProgress | torch.Tensor]:
    """Word of the prompt, then the logits that each of `tokens` follows, [some, vocabulary] at a time."""
    with lent_reader(loaded) as reader:
        for step in read_prompt(reader, prompt, cancelled):
            yield step if isinstance(step, PromptProgress) else step[None]
        for at in range(0, len(tokens) - 1, SCORE_CHUNK):  # the last of all need not be read
            if cancelled():
                return
            placed = tokens[at : min(at + SCORE_CHUNK, len(tokens) - 1)]
            yield reader.read(placed, keep=len(placed), exact=True)


def _check_fits(loaded: LoadedModel, tokens: int) -> None:
    if loaded.context_length is not None and tokens > loaded.context_length:
        raise BadInputError(
            f"The conversation and the answer have {tokens} tokens, and the context of {loaded.path.name} holds "
            f"{loaded.context_length}; score a shorter one."
        )


def _scored(loaded: LoadedModel, logits: torch.Tensor, token: int, text: str) -> TokenScore:
    """`logits`: float32 [vocabulary]."""
    check_numbers(logits)
    logprobs = torch.log_softmax(logits.double(), dim=0)
    top, ids = logprobs.topk(min(TOP, len(logprobs)))
    best = loaded.tokenizer.decode([int(ids[0])], clean_up_tokenization_spaces=False)
    assert isinstance(best, str)
    return TokenScore(
        id=token,
        text=text,
        logprob=max(LOWEST, float(logprobs[token])),
        rank=1 + int((logprobs > logprobs[token]).sum()),
        best=best,
        top=tuple((int(number), max(LOWEST, float(value))) for number, value in zip(ids, top, strict=True)),
        rest=float(logprobs.exp().index_fill(0, ids, 0.0).sum()),
    )
