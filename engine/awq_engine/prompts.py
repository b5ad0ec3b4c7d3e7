"""A conversation as token ids, by the tokenizer's own chat template.

Templates are rendered by transformers in a sandbox; a tokenizer without one is given the plain text to continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from awq_engine.bounded import bounded
from awq_engine.errors import AwqError, BadInputError, last_clause
from awq_engine.runtime import LoadedModel

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(loaded: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation, ready for the answer; the plain contents in a row when there is no template.

    Raises:
        BadInputError: there is no conversation, no tokenizer, or the template refuses the messages.
    """
    if not messages:
        raise BadInputError("There is nothing to answer: the conversation is empty.")
    _check_characters("".join(text for message in messages for text in message.values()))
    if not has_chat_template(loaded.tokenizer):
        return _plain_ids(loaded.tokenizer, _plain_text(messages))
    return list(_render(loaded, messages, tokenize=True)["input_ids"])


def encode_answer(loaded: LoadedModel, messages: Sequence[Message], prompt: Sequence[int], answer: str) -> list[int]:
    """Token ids of `answer` behind `prompt`, the ids of `messages`; `BadInputError` when it has none.

    Tokenized together with the prompt where that leaves the prompt's tokens as they are (some tokenizers put a space
    before a text of its own), else alone.
    """
    _check_characters(answer)
    tokenizer, count = loaded.tokenizer, len(prompt)
    if has_chat_template(tokenizer):
        whole = tokenizer.encode(_render(loaded, messages, tokenize=False) + answer, add_special_tokens=False)
    else:
        whole = _plain_ids(tokenizer, _plain_text(messages) + answer)
    together = list(whole[:count]) == list(prompt)
    ids = list(whole[count:]) if together else list(tokenizer.encode(answer, add_special_tokens=False))
    if not ids:
        raise BadInputError("There is nothing to score: the answer is empty.")
    return ids


def stop_tokens(loaded: LoadedModel, stops: Sequence[str] = ()) -> set[int]:
    """Every token that ends an answer: the tokenizer's, those of the model's generation settings, and of `stops`.

    A stop string that is a special token (`<|im_end|>`) never shows up as text, so its token is one of these.
    """
    settings = loaded.model.generation_config
    special = {token.content: number for number, token in loaded.tokenizer.added_tokens_decoder.items()}
    ends = {special[stop] for stop in stops if stop in special}
    for found in (loaded.tokenizer.eos_token_id, settings.eos_token_id if settings else None):
        ends.update(token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int))
    return ends


def _render(loaded: LoadedModel, messages: Sequence[Message], *, tokenize: bool) -> Any:
    asked: dict[str, Any] = {"add_generation_prompt": True, "tokenize": tokenize, "return_dict": tokenize}
    try:
        with bounded(f"The chat template of {loaded.path}"):
            return loaded.tokenizer.apply_chat_template([dict(message) for message in messages], **asked)
    except AwqError:
        raise
    except Exception as error:  # a template is a program from the model folder: anything can go wrong in it
        raise BadInputError(
            f"The chat template of {loaded.path} refuses this conversation: {last_clause(error)}"
        ) from error


def _check_characters(text: str) -> None:
    """`BadInputError` for half a character, which no tokenizer takes: JSON can hold one, and so can an argument."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadInputError(f"The text holds half a character ({half}) and cannot be read; leave that out.") from error


def _plain_text(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` to be continued: a token that ends texts, if the tokenizer adds one, is taken off again."""
    ids = list(tokenizer.encode(text))
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    if not ids:
        raise BadInputError("There is nothing to continue: the prompt is empty.")
    return ids
