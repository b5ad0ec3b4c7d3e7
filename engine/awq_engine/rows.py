"""What one row of a data set says, in the shapes that people have; `text_sources` brings the rows.

    {"messages": [{"role", "content"}, ...]}             a conversation
    {"conversations": [{"from", "value"}, ...]}          the same as ShareGPT writes it
    {"instruction", "input", "output"}                   a question and its answer, as Alpaca writes it
    {"prompt", "completion"}, {"question", "answer"}...  the same under the names below
    {"text"}                                             plain text

A row with several of these counts as the first. Contents in parts keep their text; other parts are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CHATS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
CONTEXTS = ("input", "context")
"""More of the question, after a blank line."""
ANSWERS = ("output", "completion", "response", "answer", "solution", "chosen")
SYSTEMS = ("system", "system_prompt")
TEXTS = ("text", "content")
COLUMNS = tuple(dict.fromkeys((*CHATS, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, *TEXTS, "tools")))
"""Everything looked for in a row."""
ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's names for the roles that chat templates know."""
EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What a message may carry besides role and content."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates read them."""

    messages: list[Message]
    """`role`, `content` (text) and what tool calls need."""
    tools: list[Any] | None = None
    """Descriptions of the functions the model could call."""
    other_parts: int = 0
    """Pictures, sounds and the like among the contents; not in `messages`."""


class RowError(ValueError):
    """Why a row cannot be used."""


def read_row(row: Any, column: str | None = None) -> str | Conversation:
    """The text or the conversation in a row, from `column` only if it is given.

    Raises `RowError` when there is none.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"a row is no object but {type(row).__name__}")
    if column is not None:
        return _text_or_chat(row, (column,), (column,))
    return _pair(row) or _text_or_chat(row, CHATS, TEXTS)


def _text_or_chat(row: Mapping[str, Any], chats: Iterable[str], texts: Iterable[str]) -> str | Conversation:
    for name in chats:
        if isinstance(row.get(name), list):
            return _conversation(row[name], row)
    for name in texts:
        if isinstance(row.get(name), str):
            return row[name]
    raise RowError(f"no text or messages under any known name; it has {', '.join(map(str, row)) or 'nothing'}")


def _pair(row: Mapping[str, Any]) -> Conversation | None:
    """The one question and answer of a row that has no messages."""
    if any(isinstance(row.get(name), list) for name in CHATS):
        return None
    asked, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
    if asked is None or answer is None:
        return None
    question = _as_messages(row[asked], "user")
    context = _first(row, [name for name in CONTEXTS if name != asked])
    if context and isinstance(row[context], str) and isinstance(row[asked], str):
        question = _as_messages(f"{row[asked]}\n\n{row[context]}", "user")
    answers = _as_messages(row[answer], "assistant")
    whole = isinstance(row[answer], list) and _role(answers[0]) != "assistant"  # it repeats the question
    return _conversation(answers if whole else [*question, *answers], row)


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if row.get(name) and isinstance(row[name], str | list)), None)


def _as_messages(value: str | list[Any], role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _conversation(items: list[Any], row: Mapping[str, Any]) -> Conversation:
    read = [_message(item) for item in items]
    messages, others = [message for message, _ in read], sum(count for _, count in read)
    system = next((row[name] for name in SYSTEMS if isinstance(row.get(name), str) and row[name]), None)
    if system and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    if not any(message.get("content") or message.get("tool_calls") for message in messages):
        raise RowError("its messages have no text")
    tools = _parsed(row.get("tools"))
    return Conversation(messages, tools if isinstance(tools, list) and tools else None, others)


def _role(item: Any) -> str | None:
    name = item.get("role", item.get("from")) if isinstance(item, Mapping) else None
    return ROLES.get(name.lower(), name.lower()) if isinstance(name, str) else None


def _message(item: Any) -> tuple[Message, int]:
    """The message, and how many of its parts are no text."""
    role = _role(item)
    if role is None:
        raise RowError("a message has no role")
    extras = {name: item[name] for name in EXTRAS if item.get(name) is not None}
    if "tool_calls" in extras:
        calls = extras["tool_calls"]
        if not isinstance(calls, list):
            raise RowError(f"a message's tool_calls are {type(calls).__name__}, not a list")
        extras["tool_calls"] = [_tool_call(call) for call in calls]
    content = item["content"] if "content" in item else item.get("value")
    text, others = _text_of(content)
    return {"role": role, "content": text, **extras}, others


def _text_of(content: Any) -> tuple[str, int]:
    """The text of a message's content, and how many parts of it are no text."""
    if content is None or isinstance(content, str):
        return content or "", 0
    if not isinstance(content, list):
        raise RowError(f"a message's content is {type(content).__name__}, not text")
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | Mapping)]
    kept = [text for text in texts if isinstance(text, str)]
    return "".join(kept), len(content) - len(kept)


def _tool_call(call: Any) -> Any:
    """With its arguments as an object: OpenAI's format has them as a JSON string, which templates would quote again."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    return {**call, "function": {**function, "arguments": _parsed(function.get("arguments"))}}


def _parsed(value: Any) -> Any:
    """What a JSON string says; anything else, and text that is no JSON, as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
