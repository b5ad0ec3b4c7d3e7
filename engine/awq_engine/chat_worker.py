"""A process that holds one model and answers: `python -m awq_engine.chat_worker MODEL [--backend B] [--device D]`.

The app (or any program) starts it with pipes and speaks JSON, one object a line, UTF-8, each way. It dies with its
parent: the end of its standard input ends it at once. Only protocol lines ever reach its standard output; whatever
libraries print goes to standard error, which the parent should send to a file.

MODEL is a folder, a run id or a Hub id. First the worker loads it and says `ready`; requests may come before that.

Worker to parent:

    {"type": "loading", "message": "fetching ...", "done": bytes, "total": bytes}       while a model is downloaded
    {"type": "ready", "model": str, "path": str, "backend": "triton"|"cpu"|"reference"|"torch", "reason": str,
     "device": str, "dtype": str, "context_length": int|null, "bits_per_weight": float, "quantized": int,
     "has_chat_template": bool, "notes": [str, ...]}
    {"type": "text", "id": ID, "text": str}             the next piece, whole characters, at most about 20 a second
    {"type": "done", "id": ID, "prompt_tokens": int, "new_tokens": int, "tokens_per_second": float,
     "seconds_to_first_token": float, "seconds": float, "context_used": int, "context_length": int|null,
     "finish_reason": "stop"|"length"|"context"|"cancelled", "seed": int, "used_template": bool}
    {"type": "error", "id": ID|null, "message": str, "exit_code": int, "fatal": bool}

Parent to worker:

    {"type": "chat", "id": ID, "messages": [{"role": "system"|"user"|"assistant", "content": str}, ...],
     "max_tokens": int = 512, "temperature": float = 0.7, "top_p": float = 0.95, "seed": int|null = null}
    {"type": "cancel", "id": ID}            without an id: everything asked so far

ID is any string or integer the parent chooses; use each once. Requests are answered one after the other, in order, each
with any number of `text` and then exactly one `done` or `error` with its id. A cancel is noticed between two tokens (in
a long prompt: between two chunks of it) and answered by `done` with `finish_reason` "cancelled", also for a request
still waiting in line. A cancel of an id that is not known or already answered does nothing. An error that is not fatal
leaves the worker ready for the next request; after a fatal one it exits with `exit_code`, as documented in `errors.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from awq_engine.errors import AwqError, BadInputError, ExitCode, ResourceError

if TYPE_CHECKING:
    from awq_engine.generate import GenerationStats
    from awq_engine.runtime import LoadedModel

SECONDS_BETWEEN_TEXTS = 0.05
SAMPLING_FIELDS = {"max_tokens": int, "temperature": (int, float), "top_p": (int, float), "seed": int}
Id = str | int


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model, then answer until standard input ends; returns the exit code when loading fails."""
    options = _parse(arguments)
    wire = Wire(_take_stdout())
    inbox = Inbox()
    threading.Thread(target=read_requests, args=(sys.stdin.buffer, inbox, wire), daemon=True).start()
    try:
        loaded = _load(options, wire)
        while True:
            answer(loaded, inbox.take(), inbox, wire)
    except Exception as error:
        wire.send_error(None, error, fatal=True)
        return int(exit_code(error))


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
            traceback.print_exception(error, file=sys.stderr)
        message = str(error) if isinstance(error, AwqError) else f"{type(error).__name__}: {error}"
        self.send("error", id=request, message=message, exit_code=int(code), fatal=fatal)


@dataclass(frozen=True)
class Request:
    """One `chat` line."""

    id: Id
    messages: list[dict[str, str]]
    sampling: dict[str, Any]
    """Those of `SAMPLING_FIELDS` that were given."""


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
            del self._open[request]


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
    elif kind == "chat":
        inbox.put(_request(found))
    else:
        raise BadInputError(f"A request is an object with the type chat or cancel, not {kind!r}.")


def _request(found: dict[str, Any]) -> Request:
    identity, messages = found.get("id"), found.get("messages")
    if not isinstance(identity, str | int):
        raise BadInputError("A chat request needs an id, a string or an integer.")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise BadInputError("messages must be a list of objects with the texts role and content.")
    given = {name: found[name] for name in SAMPLING_FIELDS if found.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, SAMPLING_FIELDS[name]):
            raise BadInputError(f"{name} is {value!r}, which is no number that can be used.")
    return Request(identity, messages, given)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def answer(loaded: LoadedModel, request: Request, inbox: Inbox, wire: Wire) -> None:
    """Send the texts and the end of one request; what goes wrong is sent as well."""
    from awq_engine.generate import Sampling, generate

    try:
        sampling = Sampling(**request.sampling)
        pieces = generate(loaded, request.messages, sampling, lambda: inbox.is_cancelled(request.id))
        for piece in batched(pieces):
            if isinstance(piece, str):
                wire.send("text", id=request.id, text=piece)
            else:
                wire.send("done", id=request.id, **asdict(piece))
    except Exception as error:
        wire.send_error(request.id, _named(error))
    finally:
        inbox.close(request.id)


def batched(pieces: Iterator[str | GenerationStats]) -> Iterator[str | GenerationStats]:
    """The same with texts joined, so that they come at most every `SECONDS_BETWEEN_TEXTS`; the first comes at once."""
    held, due = "", 0.0
    for piece in pieces:
        now = time.monotonic()
        if isinstance(piece, str):
            held += piece
        if held and (now >= due or not isinstance(piece, str)):
            yield held
            held, due = "", now + SECONDS_BETWEEN_TEXTS
        if not isinstance(piece, str):
            yield piece


def exit_code(error: Exception) -> ExitCode:
    return error.exit_code if isinstance(error, AwqError) else ExitCode.BUG


def _named(error: Exception) -> Exception:
    """Running out of memory as the kind of error it is."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ResourceError("The device ran out of memory while answering; use a shorter conversation.")
    return error


def _load(options: argparse.Namespace, wire: Wire) -> LoadedModel:
    from awq_engine.checkpoint import read_checkpoint
    from awq_engine.models import resolve_model

    def on_progress(done: int, total: int, what: str) -> None:
        wire.send("loading", message=what, done=done, total=total)

    resolved = resolve_model(options.model, on_progress)
    read_checkpoint(resolved.path)  # torch takes seconds to import: a folder without a model is told before
    from awq_engine.generate import has_chat_template
    from awq_engine.runtime import load_model

    try:
        loaded = load_model(resolved.path, backend=options.backend, device=options.device)
    except Exception as error:
        raise _named(error) from error
    wire.send(
        "ready",
        model=resolved.name,
        path=str(resolved.path),
        backend=loaded.backend,
        reason=loaded.reason,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        context_length=loaded.context_length,
        bits_per_weight=loaded.bits_per_weight,
        quantized=loaded.quantized,
        has_chat_template=has_chat_template(loaded.tokenizer),
        notes=list(loaded.notes),
    )
    return loaded


def _take_stdout() -> BinaryIO:
    """Keep standard output for the protocol; from here on file descriptor 1 is standard error, for everybody."""
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m awq_engine.chat_worker", description="Hold one model and answer.")
    parser.add_argument("model", help="a folder, a run id or a Hub id")
    parser.add_argument("--backend", default="auto", choices=["auto", "triton", "cpu", "reference"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # an ordinary exit aborts on the lock of standard input, which the reading thread holds
