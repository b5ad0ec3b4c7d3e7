"""Text from a loaded model, piece by piece.

The prompt goes through the tokenizer's own chat template (rendered by transformers in a sandbox); a model without one
is given the plain text to continue. The prompt is read in chunks and tokens are made one at a time over a key-value
cache; between any two of these steps the caller can cancel. A token is often less than a character, so text is held
back until the characters it belongs to are complete.

Sampling is done on the CPU, from logits in float32 and with a generator of its own: the same seed gives the same text
whatever else the process does.
"""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from awq_engine.errors import AwqError, BadInputError, UsageError
from awq_engine.runtime import LoadedModel

PREFILL_CHUNK = 512
"""Tokens of the prompt read in one step: bounds memory and the time until a cancel is noticed."""
NUCLEUS = 512
"""Tokens looked at before a whole vocabulary is sorted, which takes longer than a GPU needs for a token."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of an unfinished character to."""

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""
FinishReason = Literal["stop", "length", "context", "cancelled"]
"""The model ended; max_tokens; the context is full; the caller cancelled."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 512
    """Most new tokens."""
    temperature: float = 0.7
    """0 takes the likeliest token always."""
    top_p: float = 0.95
    """Choose among the likeliest tokens that together have this probability; 1 for all."""
    seed: int | None = None
    """None draws one; `GenerationStats.seed` tells which."""

    def __post_init__(self) -> None:
        """Raises `UsageError` for numbers that make no sense."""
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; it must be between 0 (no randomness) and 100.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1.")


@dataclass(frozen=True)
class GenerationStats:
    """How a generation went; the last thing `generate` yields."""

    prompt_tokens: int
    new_tokens: int
    """Without the token that ended the text."""
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
) -> Iterator[str | GenerationStats]:
    """Answer `messages`: pieces of text, whole characters each, then one `GenerationStats`.

    Args:
        cancelled: asked between any two steps; the text so far is kept and the statistics still come.
    Raises:
        BadInputError: there is no tokenizer, the template refuses the messages, or they do not fit into the context.
    """
    sampling = sampling or Sampling()
    start = time.perf_counter()
    prompt = encode_prompt(loaded, messages)
    room = _room(loaded, len(prompt))
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    text = Detokenizer(loaded.tokenizer, prompt)
    finish: FinishReason = "length" if sampling.max_tokens <= room else "context"
    stops, made, first = stop_tokens(loaded), 0, start
    for token in _tokens(loaded, prompt, min(sampling.max_tokens, room), sampling, seed, cancelled):
        if token is None or token in stops:
            finish = "cancelled" if token is None else "stop"
            break
        made += 1
        first = time.perf_counter() if made == 1 else first
        if piece := text.push(token):
            yield piece
    if rest := text.flush():
        yield rest
    end = time.perf_counter()
    yield GenerationStats(
        prompt_tokens=len(prompt),
        new_tokens=made,
        tokens_per_second=(made - 1) / (end - first) if made > 1 else 0.0,
        seconds_to_first_token=first - start,
        seconds=end - start,
        context_used=len(prompt) + made,
        context_length=loaded.context_length,
        finish_reason=finish,
        seed=seed,
        used_template=has_chat_template(loaded.tokenizer),
    )


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(loaded: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation, ready for the answer; the plain contents in a row when there is no template."""
    if not messages:
        raise BadInputError("There is nothing to answer: the conversation is empty.")
    tokenizer = loaded.tokenizer
    if not has_chat_template(tokenizer):
        return _plain_ids(tokenizer, "\n".join(message["content"] for message in messages))
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except Exception as error:  # a template is a program from the model folder: anything can go wrong in it
        raise BadInputError(f"The chat template of {loaded.path} refuses this conversation: {error}") from error
    return list(encoded["input_ids"])


def stop_tokens(loaded: LoadedModel) -> set[int]:
    """Every token that ends an answer: the tokenizer's and those of the model's generation settings."""
    ends: set[int] = set()
    settings = loaded.model.generation_config
    for found in (loaded.tokenizer.eos_token_id, settings.eos_token_id if settings else None):
        ends.update(token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int))
    return ends


class Detokenizer:
    """Tokens to text as they come, never half a character.

    Decodes a short window only, as the same token can decode differently after others (a leading space, mostly): text
    is what the window says with the new tokens and did not say before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        """`prompt` gives the window something to start from."""
        self._tokenizer = tokenizer
        self._window = list(prompt[-4:])
        self._said = len(self._window)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._window.append(token)
        before, now = self._decode(self._window[: self._said]), self._decode(self._window)
        if now.endswith(INCOMPLETE) or len(now) <= len(before):
            return ""
        self._window, self._said = self._window[self._said :], len(self._window) - self._said
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, without the bytes of a character that never was completed."""
        before, now = self._decode(self._window[: self._said]), self._decode(self._window)
        return now[len(before) :].rstrip(INCOMPLETE)

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` to be continued: a token that ends texts, if the tokenizer adds one, is taken off again."""
    ids = list(tokenizer.encode(text))
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    if not ids:
        raise BadInputError("There is nothing to continue: the prompt is empty.")
    return ids


def _room(loaded: LoadedModel, prompt_tokens: int) -> int:
    """How many tokens still fit behind the prompt."""
    if loaded.context_length is None:
        return 1 << 30
    if prompt_tokens >= loaded.context_length:
        raise BadInputError(
            f"The conversation has {prompt_tokens} tokens, and the context of {loaded.path.name} holds "
            f"{loaded.context_length}; shorten it or begin a new one."
        )
    return loaded.context_length - prompt_tokens


def _tokens(
    loaded: LoadedModel,
    prompt: list[int],
    limit: int,
    sampling: Sampling,
    seed: int,
    cancelled: Callable[[], bool],
) -> Iterator[int | None]:
    """At most `limit` new tokens, then the end; None once when the caller cancelled."""
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache(config=loaded.model.config)
    pending = prompt
    for _ in range(limit):
        logits = None
        for at in range(0, len(pending), PREFILL_CHUNK):
            if cancelled():
                yield None
                return
            logits = _last_logits(loaded, pending[at : at + PREFILL_CHUNK], cache)
        assert logits is not None
        token = sample(logits, sampling, generator)
        yield token
        pending = [token]


def _last_logits(loaded: LoadedModel, tokens: list[int], cache: DynamicCache) -> torch.Tensor:
    """float32 [vocabulary] on the CPU, after `tokens`."""
    inputs = torch.tensor([tokens], device=loaded.device)
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters else {}
    with torch.inference_mode():
        logits = loaded.model(input_ids=inputs, past_key_values=cache, use_cache=True, **options).logits
    return logits[0, -1].float().cpu()


def sample(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token. `logits` is float32 [vocabulary]; raises `AwqError` when they are no numbers."""
    if logits.isnan().any():
        raise AwqError("The model computed no numbers (NaN); its weights are damaged, or overflow in this dtype.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=0)
    if sampling.top_p == 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    likeliest, tokens = probabilities.topk(min(NUCLEUS, len(probabilities)))
    if likeliest.sum() < sampling.top_p:
        likeliest, tokens = probabilities.sort(descending=True)
    before = likeliest.cumsum(0) - likeliest
    likeliest[before >= sampling.top_p] = 0.0  # the likeliest token always stays
    return int(tokens[torch.multinomial(likeliest, 1, generator=generator)])
