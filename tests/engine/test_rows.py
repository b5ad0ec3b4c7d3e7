"""Every shape of row that people have becomes the same conversation; anything else is refused in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from awq_engine.rows import Conversation, RowError, read_row

ASKED, ANSWERED = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
BOTH = [ASKED, ANSWERED]
SYSTEM = {"role": "system", "content": "be kind"}


def said(row: Any, column: str | None = None) -> list[dict[str, Any]]:
    found = read_row(row, column)
    assert isinstance(found, Conversation)
    return found.messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": BOTH},
        {"conversation": BOTH},
        {"text": "formatted already", "prompt": "hi", "messages": BOTH},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"conversations": [{"from": "User", "value": "hi"}, {"from": "model", "value": "ho"}], "id": 7},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": "hi", "chosen": BOTH, "rejected": BOTH},
        {"chosen": [ANSWERED], "prompt": "hi"},
        {"instruction": "hi", "input": "", "output": "ho", "text": "### Instruction: hi"},
        {"question": "hi", "answer": "ho"},
        {"input": "hi", "output": "ho"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                      {"role": "assistant", "content": ["h", "o"]}]},
    ],
)  # fmt: skip
def test_shapes_of_one_conversation(row: dict[str, Any]) -> None:
    assert said(row) == BOTH


def test_more_of_the_question_follows_it() -> None:
    assert said({"instruction": "add", "input": "1 and 2", "output": "3"})[0]["content"] == "add\n\n1 and 2"
    assert said({"instruction": "add", "context": "1 and 2", "response": "3"})[0]["content"] == "add\n\n1 and 2"


def test_system_message_beside_the_conversation() -> None:
    assert said({"system": "be kind", "prompt": "hi", "completion": "ho"}) == [SYSTEM, *BOTH]
    assert said({"system_prompt": "be kind", "messages": BOTH}) == [SYSTEM, *BOTH]
    assert said({"system": "other", "messages": [SYSTEM, *BOTH]}) == [SYSTEM, *BOTH]


def test_text_under_its_names_and_under_a_given_one() -> None:
    assert read_row({"text": "x", "id": 1}) == "x"
    assert read_row({"content": "x"}) == "x"
    assert read_row({"body": "x", "text": "y"}, "body") == "x"
    assert said({"chat": BOTH, "text": "y"}, "chat") == BOTH


def test_tool_calls_get_objects_and_keep_their_tools() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    found = read_row({"messages": messages, "tools": '[{"type": "function"}]'})
    assert isinstance(found, Conversation)
    assert found.tools == [{"type": "function"}]
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert found.messages[1]["content"] == ""


def test_parts_that_are_no_text_are_counted() -> None:
    content = [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "what is this"}]
    found = read_row({"messages": [{"role": "user", "content": content}, ANSWERED]})
    assert isinstance(found, Conversation)
    assert (found.messages[0]["content"], found.other_parts) == ("what is this", 1)


def test_values_that_parquet_fills_in_are_not_there() -> None:
    messages = [{**ASKED, "tool_calls": None, "name": None}, {**ANSWERED, "tool_calls": None, "name": None}]
    assert said({"messages": messages, "text": None}) == BOTH


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ([], "a row is no object but list"),
        ({"id": 1}, "under any known name; it has id"),
        ({"prompt": "alone"}, "under any known name; it has prompt"),
        ({"messages": ["x"]}, "a message has no role"),
        ({"messages": [{"content": "x"}]}, "a message has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content is int, not text"),
        ({"messages": [{**ANSWERED, "tool_calls": 2}]}, "tool_calls are int, not a list"),
        ({"messages": [{"role": "user", "content": ""}]}, "its messages have no text"),
        ({"text": ["a", "b"]}, "under any known name"),
    ],
)
def test_refusals(row: Any, part: str) -> None:
    with pytest.raises(RowError, match=part):
        read_row(row)
