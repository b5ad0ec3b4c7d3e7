"""Conversations as the model's own template writes them, and where in the text its answers are."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from awq_engine.conversations import Renderer, common_prefix
from awq_engine.documents import Document, Notes
from awq_engine.rows import Conversation

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<e>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
FORGETS_REASONING = (
    "{% for m in messages %}{% set c = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "<{{ m.role }}>{{ c }}{% if loop.last %}<last>{% endif %}{% endfor %}"
)
CALLS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
    "({{ m.tool_calls[0].function.arguments | tojson }}){% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def tokenizer(template: str | None) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0}, "<s>")), bos_token="<s>", eos_token="<|im_end|>"
    )
    made.chat_template = template
    return made


def render(
    template: str | None, *turns: tuple[str, str], answers: bool = True, notes: Notes | None = None
) -> Document | None:
    conversation = Conversation([{"role": role, "content": text} for role, text in turns])
    return Renderer(tokenizer(template), notes or Notes(), answers).render(conversation, "line 1")


def answered(document: Document | None) -> list[str]:
    assert document is not None
    assert document.answers is not None
    return [document.text[start:stop] for start, stop in document.answers]


TURNS = (("user", "who?"), ("assistant", " It is me. "), ("user", "why?"), ("assistant", "No reason"))


def test_answers_are_found_in_any_template() -> None:
    assert answered(render(CHATML, *TURNS)) == ["It is me.", "No reason"]
    assert answered(render(NO_SYSTEM, *TURNS)) == [" It is me. ", "No reason"]


def test_template_that_marks_its_answers_is_believed() -> None:
    assert answered(render(MARKED, *TURNS)) == [" It is me. <e>", "No reason<e>"]


def test_reasoning_that_the_template_forgets_is_no_answer() -> None:
    """And the last answer is whole, reasoning included."""
    turns = (("user", "a"), ("assistant", "hm</think>one"), ("user", "b"), ("assistant", "so</think>two"))
    assert answered(render(FORGETS_REASONING, *turns)) == ["one", "so</think>two"]


def test_equal_answers_are_each_found() -> None:
    assert answered(render(CHATML, ("user", "x"), ("assistant", "x"), ("user", "x"), ("assistant", "x"))) == ["x", "x"]


def test_tool_call_is_an_answer() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    conversation = Conversation(
        [
            {"role": "user", "content": "sum?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three"},
        ]
    )
    found = Renderer(tokenizer(CALLS), Notes(), answers=True).render(conversation, "")
    assert answered(found) == ['add({"a": 1})', "three"]


def test_tokens_that_windows_set_themselves_are_taken_off() -> None:
    """The begin-of-text token in front, the end-of-text token behind; answers keep their places."""
    found = render(CHATML, *TURNS)
    assert found is not None
    assert found.text.startswith("<|im_start|>user\nwho?")
    assert found.text.endswith("assistant\nNo reason")


def test_without_a_template_speakers_are_named() -> None:
    notes = Notes()
    found = render(None, ("user", "who?"), ("assistant", "me"), notes=notes)
    assert found is not None
    assert found.text == "User: who?\n\nAssistant: me"
    assert answered(found) == ["me"]
    assert notes.clauses() == ["conversations written with the speakers' names, as the model has no chat template: 1"]


def test_system_message_moves_where_the_template_has_no_such_role() -> None:
    notes = Notes()
    found = render(NO_SYSTEM, ("system", "be kind"), ("user", "hi"), ("assistant", "ho"), notes=notes)
    assert found is not None
    assert found.text == "[user] be kind\n\nhi\n[assistant] ho\n"
    assert answered(found) == ["ho"]
    assert "as the chat template has no such role: 1 (first line 1)" in notes.clauses()[0]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('I refuse.') }}", "I refuse."),
        ("{{ messages[5].content }}", "has no element 5"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_refusal_is_counted_with_its_reason(template: str, reason: str) -> None:
    notes = Notes()
    assert render(template, ("system", "s"), *TURNS, notes=notes) is None
    (clause,) = notes.clauses()
    assert clause.startswith("conversations that the chat template refuses, left out: 1 (first line 1: ")
    assert reason in clause


def test_conversation_without_an_answer_is_left_out_where_only_answers_count() -> None:
    notes = Notes()
    assert render(CHATML, ("user", "hello?"), notes=notes) is None
    assert notes.clauses() == ["conversations in which no answer was found, left out: 1 (first line 1)"]
    whole = render(CHATML, ("user", "hello?"), answers=False)
    assert whole is not None
    assert whole.answers is None


def test_parts_that_are_no_text_are_noted() -> None:
    notes = Notes()
    Renderer(tokenizer(CHATML), notes).render(Conversation([{"role": "user", "content": "x"}], other_parts=2), "row 4")
    assert notes.clauses() == ["parts of messages that are no text, left out: 2 (first row 4)"]


def test_common_prefix() -> None:
    assert [common_prefix(a, b) for a, b in (("", "x"), ("ab", "ab"), ("abc", "abd"), ("x", "y"))] == [0, 2, 2, 0]
