"""The app's end of a chat worker: a child process that holds one model, spoken to in JSON lines over pipes.

The worker (`awq_engine.chat_worker` documents the protocol) dies when its standard input ends, so it cannot outlive
this process, however that ends. Whatever it prints besides goes to an unnamed file whose end explains a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from awq_engine.detached import QUIET_THREADS
from awq_engine.sampling_settings import Sampling
from awq_engine.token_scores import TokenScore

MODULE = "awq_engine.chat_worker"
MAX_LINE = 10 << 20
"""Bytes; asyncio's default of 64 KiB is less than one long reply."""
SECONDS_TO_END = 2.0
"""How long a worker may take to follow the end of its input before it is killed."""
TAIL_LINES = 12


@dataclass(frozen=True)
class Loading:
    """The model is being fetched."""

    message: str
    done: int
    total: int
    """Bytes; 0 when unknown."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    model: str
    backend: str
    reason: str
    """Why this backend."""
    device: str
    decoding: str
    """Whether it runs on our own decoder, and why not; empty where the worker does not say."""
    kv_cache: str
    """What keys and values are kept in: `float` or `int8`."""
    context_length: int | None
    bits_per_weight: float
    has_chat_template: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """The prompt is being read."""

    id: str
    done: int
    total: int
    """Tokens."""


@dataclass(frozen=True)
class Scores:
    """How likely the model finds the next tokens of an answer."""

    id: str
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Scored:
    """Every token of an answer was scored, unless it was cancelled."""

    id: str
    complete: bool


@dataclass(frozen=True)
class Piece:
    """The next characters of a reply."""

    id: str
    text: str


@dataclass(frozen=True)
class Done:
    """A reply is complete, or was stopped."""

    id: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float
    seconds_to_first_token: float
    context_used: int
    context_length: int | None
    finish_reason: str
    """`stop`, `length`, `context` or `cancelled`."""
    seed: int | None


@dataclass(frozen=True)
class Failed:
    """A request, or with `fatal` the worker, failed."""

    id: str | None
    message: str
    fatal: bool


Reply = Loading | Ready | Reading | Piece | Done | Scores | Scored | Failed


class ChatClient:
    """Starts one worker, sends requests, yields its replies."""

    def __init__(self, model: str, command: Sequence[str] | None = None, *, kv_cache: str = "float") -> None:
        """`kv_cache`: `int8` keeps a long conversation in less memory, where the model runs on our own decoder."""
        options = () if kv_cache == "float" else ("--kv-cache", kv_cache)
        self._command = [*(command or (sys.executable, "-m", MODULE)), model, *options]
        self._process: asyncio.subprocess.Process | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        self._ids = (str(number) for number in itertools.count(1))
        self._closing = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None and not self._closing

    async def start(self) -> None:
        """Start the worker; it loads the model and says `Ready`. Raises `OSError` when it cannot be started."""
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=self._log,
            limit=MAX_LINE, env={**QUIET_THREADS, **os.environ, **quiet},
        )  # fmt: skip

    async def replies(self) -> AsyncIterator[Reply]:
        """Everything the worker says until it ends; an end that nobody asked for is a fatal `Failed`."""
        assert self._process is not None
        assert self._process.stdout is not None
        fatal = False
        async for line in self._process.stdout:
            if (reply := parse_reply(line)) is not None:
                fatal = fatal or (isinstance(reply, Failed) and reply.fatal)
                yield reply
        code = await self._process.wait()
        if not fatal and not self._closing:
            yield Failed(None, self._last_words(code), fatal=True)

    async def ask(self, messages: Sequence[Mapping[str, str]], sampling: Sampling) -> str:
        """Send a conversation that ends with the person's turn; returns the id its replies carry."""
        request = next(self._ids)
        await self._send(type="chat", id=request, messages=list(messages), **dataclasses.asdict(sampling))
        return request

    async def score(self, messages: Sequence[Mapping[str, str]], answer: str) -> str:
        """Ask how likely the model finds `answer`, whoever wrote it; returns the id of the `Scores`."""
        request = next(self._ids)
        await self._send(type="score", id=request, messages=list(messages), answer=answer)
        return request

    async def cancel(self) -> None:
        """Stop everything asked so far; each request still ends with `Done` or `Scored`."""
        await self._send(type="cancel")

    async def close(self) -> None:
        """End the worker: first by closing its input, then by force."""
        self._closing = True
        process = self._process
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), SECONDS_TO_END)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._log.close()

    async def _send(self, **request: Any) -> None:
        """A worker that is gone is no error here: `replies` says so."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()

    def _last_words(self, code: int) -> str:
        """Why the worker is gone, as far as its exit code and the end of its log tell."""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = " It may have run out of memory." if code in (-9, -11) else ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 10_000))
        tail = self._log.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"The chat process {how}.{hint}", *tail])


def parse_reply(line: bytes) -> Reply | None:
    """One line of the worker; None for lines of a kind or shape this version does not know."""
    try:
        data = json.loads(line)
        return _READERS[data["type"]](data)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _read_ready(data: dict[str, Any]) -> Ready:
    return Ready(
        str(data["model"]), str(data["backend"]), str(data["reason"]), str(data["device"]),
        str(data.get("decoding", "")), str(data.get("kv_cache", "float")), _count(data["context_length"]),
        float(data["bits_per_weight"]), bool(data["has_chat_template"]), tuple(map(str, data.get("notes", []))),
    )  # fmt: skip


def _read_done(data: dict[str, Any]) -> Done:
    return Done(
        str(data["id"]), int(data["prompt_tokens"]), int(data["new_tokens"]), float(data["tokens_per_second"]),
        float(data["seconds_to_first_token"]), int(data["context_used"]), _count(data["context_length"]),
        str(data["finish_reason"]), _count(data.get("seed")),
    )  # fmt: skip


def _read_failed(data: dict[str, Any]) -> Failed:
    request = data.get("id")
    return Failed(None if request is None else str(request), str(data["message"]), bool(data.get("fatal", False)))


_READERS = {
    "loading": lambda data: Loading(str(data["message"]), int(data["done"]), int(data["total"])),
    "ready": _read_ready,
    "prompt": lambda data: Reading(str(data["id"]), int(data["done"]), int(data["total"])),
    "text": lambda data: Piece(str(data["id"]), str(data["text"])),
    "scores": lambda data: Scores(str(data["id"]), tuple(map(TokenScore.from_json, data["tokens"]))),
    "scored": lambda data: Scored(str(data["id"]), data["finish_reason"] == "complete"),
    "done": _read_done,
    "error": _read_failed,
}
