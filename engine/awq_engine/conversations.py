"""Conversations become text through the model's own chat template, rendered in transformers' sandbox.

Where only answers are to count, the model's turns are found in the rendered text. A template that marks them with
`{% generation %}` says itself where they are. For any other, the conversation is rendered once more with one answer
exchanged: what differs between the two texts is that answer. So a template may trim, drop earlier reasoning or treat
the last turn differently, which a comparison of rendered beginnings would not survive.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import replace
from typing import Any

from awq_engine.bounded import bounded
from awq_engine.documents import Document, Notes, Spans
from awq_engine.errors import AwqError
from awq_engine.rows import Conversation, Message

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TEMPLATE = "The model's chat template"
STAND_IN = "\N{OBJECT REPLACEMENT CHARACTER}"
"""In place of an answer; no text begins or ends with it."""


class Renderer:
    """Writes conversations as one model reads them, and keeps count of what that took."""

    def __init__(self, tokenizer: Any, notes: Notes, answers: bool = False) -> None:
        """With `answers`, documents know where the model's turns are, and those without any are left out."""
        self._tokenizer = tokenizer
        self._notes = notes
        self._answers = answers

    def render(self, conversation: Conversation, where: str) -> Document | None:
        """The conversation as a document; None, with a note, when the template refuses it."""
        if conversation.other_parts:
            self._notes.add("parts of messages that are no text, left out", where, conversation.other_parts)
        if not getattr(self._tokenizer, "chat_template", None):
            self._notes.add("conversations written with the speakers' names, as the model has no chat template")
            return self._checked(_written_out(conversation.messages), where)
        accepted = self._accepted(conversation, where)
        if accepted is None:
            return None
        conversation, text = accepted
        answers = self._spans(conversation, text) if self._answers else ()
        return self._checked(self._without_ends(Document(text, answers)), where)

    def _checked(self, document: Document, where: str) -> Document | None:
        if not self._answers:
            return replace(document, answers=None)
        if document.answers:
            return document
        self._notes.add("conversations in which no answer was found, left out", where)
        return None

    def _accepted(self, conversation: Conversation, where: str) -> tuple[Conversation, str] | None:
        """The conversation in the form the template takes, rendered."""
        try:
            return conversation, self._apply(conversation)
        except AwqError:  # it has no end: neither has it for the next conversation
            raise
        except Exception as error:  # a template is a program from the model folder: anything can go wrong in it
            reason = str(error).strip().split("\n")[0] or type(error).__name__
        merged = _system_in_user(conversation)
        if merged is not None:
            try:
                text = self._apply(merged)
            except AwqError:
                raise
            except Exception:  # the first refusal is the one to tell
                pass
            else:
                self._notes.add("system messages put into the user's, as the chat template has no such role", where)
                return merged, text
        self._notes.add("conversations that the chat template refuses, left out", f"{where}: {reason}")
        return None

    def _apply(self, conversation: Conversation) -> str:
        tools = {"tools": conversation.tools} if conversation.tools else {}
        with bounded(TEMPLATE):
            return str(self._tokenizer.apply_chat_template(conversation.messages, tokenize=False, **tools))

    def _spans(self, conversation: Conversation, text: str) -> Spans:
        template = self._tokenizer.get_chat_template(tools=conversation.tools)
        if GENERATION.search(template):
            return self._marked_spans(conversation, template)
        found = (
            self._difference(conversation, number, text)
            for number, message in enumerate(conversation.messages)
            if message["role"] == "assistant"
        )
        return tuple(span for span in found if span is not None)

    def _marked_spans(self, conversation: Conversation, template: str) -> Spans:
        from transformers.utils.chat_template_utils import render_jinja_template

        with bounded(TEMPLATE):
            found: Any = render_jinja_template(
                [conversation.messages], tools=conversation.tools, chat_template=template,
                return_assistant_tokens_mask=True, **self._tokenizer.special_tokens_map,
            )  # fmt: skip
        return tuple((start, stop) for start, stop in found[1][0] if start < stop)

    def _difference(self, conversation: Conversation, number: int, text: str) -> tuple[int, int] | None:
        """Where `text` changes when message `number` says something else; None when the template will not have it."""
        messages = list(conversation.messages)
        messages[number] = {"role": "assistant", "content": STAND_IN}
        try:
            other = self._apply(replace(conversation, messages=messages))
        except AwqError:
            raise
        except Exception:
            return None
        start = common_prefix(text, other)
        end = common_prefix(text[start:][::-1], other[start:][::-1])
        return (start, len(text) - end) if start < len(text) - end else None

    def _without_ends(self, document: Document) -> Document:
        """Without the tokens around a text that `calibration` sets itself."""
        bos, eos = (getattr(self._tokenizer, name, None) or "" for name in ("bos_token", "eos_token"))
        start = len(bos) if document.text.startswith(bos) else 0
        stripped = document.text.rstrip()
        ends = bool(eos) and stripped.endswith(eos)
        return document.excerpt(start, len(stripped) - len(eos) if ends else len(document.text))


def common_prefix(a: str, b: str) -> int:
    """Length of the beginning that two texts share, by bisection."""
    return bisect_left(range(min(len(a), len(b))), True, key=lambda k: a[: k + 1] != b[: k + 1])


def _system_in_user(conversation: Conversation) -> Conversation | None:
    """The conversation with its system message at the head of the first user message; None when it has no such pair."""
    match conversation.messages:
        case [{"role": "system", "content": system}, {"role": "user", "content": text} as user, *rest]:
            return replace(conversation, messages=[{**user, "content": f"{system}\n\n{text}"}, *rest])
    return None


def _written_out(messages: list[Message]) -> Document:
    """Turns with the speakers' names, for a model that knows no chat."""
    text, answers = "", []
    for message in messages:
        text += ("\n\n" if text else "") + f"{message['role'].title()}: "
        if message["role"] == "assistant" and message["content"]:
            answers.append((len(text), len(text) + len(message["content"])))
        text += message["content"]
    return Document(text, tuple(answers))
