"""The two ends of a chat worker's pipes: requests taken off standard input, lines put on standard output.

`chat_worker` documents the protocol. Nothing here loads torch, so requests are taken while the model still loads.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from awq_engine.errors import AwqError, BadInputError, ExitCode
from awq_engine.sanitize import redacted

NUMBER = (int, float)
SAMPLING_FIELDS = {
    "max_tokens": int, "temperature": NUMBER, "top_p": NUMBER, "seed": int, "top_k": int, "min_p": NUMBER,
    "repetition_penalty": NUMBER, "stop": list,
}  # fmt: skip
Id = str | int


class Wire:
    """Writes protocol lines, whole ones, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: Any) -> None:
        """One line `{"type": kind, ...}`. A parent that is gone is no error: the end of stdin is about to end us."""
        line = json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        with self._lock:
            try:
                self._stream.write(line + b"\n")
                self._stream.flush()
            except BrokenPipeError:
                os._exit(ExitCode.OK)

    def send_error(self, request: Id | None, error: Exception, *, fatal: bool = False) -> None:
        """An error as the parent shows it; one that nobody foresaw leaves its traceback on standard error."""
        code = exit_code(error)
        if code is ExitCode.BUG:
            print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        message = str(error) if isinstance(error, AwqError) else f"{type(error).__name__}: {error}"
        self.send("error", id=request, message=redacted(message), exit_code=int(code), fatal=fatal)


@dataclass(frozen=True)
class Request:
    """One `chat` or `score` line."""

    id: Id
    messages: list[dict[str, str]]
    sampling: dict[str, Any] = field(default_factory=dict)
    """Of a `chat`: those of `SAMPLING_FIELDS` that were given."""
    answer: str | None = None
    """Of a `score`: the text to score; None for a `chat`."""


@dataclass
class Inbox:
    """Requests in line, and which of them were cancelled."""

    waiting: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue)
    _open: dict[Id, threading.Event] = field(default_factory=dict)
    """Unanswered requests, the one being answered included; the event is set by a cancel."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, request: Request) -> None:
        with self._lock:
            if request.id in self._open:
                raise BadInputError(f"The id {request.id!r} is in use; give each request its own.")
            self._open[request.id] = threading.Event()
        self.waiting.put(request)

    def take(self) -> Request:
        """Wait for the next request."""
        return self.waiting.get()

    def cancel(self, request: Id | None) -> None:
        """Cancel one request, or with None all that are unanswered."""
        with self._lock:
            for event in [e for key, e in self._open.items() if request is None or key == request]:
                event.set()

    def is_cancelled(self, request: Id) -> bool:
        with self._lock:
            return self._open[request].is_set()

    def close(self, request: Id) -> None:
        """The request is answered."""
        with self._lock:
            self._open.pop(request, None)


def read_requests(stream: BinaryIO, inbox: Inbox, wire: Wire) -> None:
    """Take lines until the stream ends, then end the process: the parent is gone and nothing is worth finishing."""
    for line in stream:
        found: Any = None
        try:
            found = json.loads(line)
            _take_line(found, inbox)
        except (AwqError, ValueError, RecursionError) as error:
            problem = error if isinstance(error, AwqError) else BadInputError(f"This line is not JSON: {line[:80]!r}.")
            wire.send_error(found.get("id") if isinstance(found, dict) else None, problem)
    os._exit(ExitCode.OK)


def _take_line(found: Any, inbox: Inbox) -> None:
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "cancel":
        inbox.cancel(found.get("id"))
    elif kind in ("chat", "score"):
        inbox.put(read_request(found))
    else:
        raise BadInputError(f"A request is an object with the type chat, score or cancel, not {kind!r}.")


def read_request(found: dict[str, Any]) -> Request:
    """A `chat` or `score` line, checked as far as that needs no model; `BadInputError` says what is wrong with it."""
    identity, messages = found.get("id"), found.get("messages")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise BadInputError("A request needs an id, a string or an integer.")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise BadInputError("messages must be a list of objects with the texts role and content.")
    if found["type"] == "score":
        if not isinstance(answer := found.get("answer"), str):
            raise BadInputError("A score request needs an answer, the text to score.")
        return Request(identity, messages, answer=answer)
    given = {name: found[name] for name in SAMPLING_FIELDS if found.get(name) is not None}
    for name, value in given.items():
        _check_field(name, value)
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    return Request(identity, messages, given)


def _check_field(name: str, value: Any) -> None:
    if name == "stop":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise BadInputError("stop must be a list of texts.")
    elif not isinstance(value, SAMPLING_FIELDS[name]) or isinstance(value, bool):
        raise BadInputError(f"{name} is {value!r}, which is no number that can be used.")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def exit_code(error: Exception) -> ExitCode:
    return error.exit_code if isinstance(error, AwqError) else ExitCode.BUG
