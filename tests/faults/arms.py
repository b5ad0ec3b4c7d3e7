"""Faults that are put into an engine's process before it begins."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Self

import torch

from awq_engine import capture, writer
from awq_engine.events import Event
from awq_engine.journal import Journal
from awq_engine.runs import Run
from tests.faults.bench import Arm

Act = Callable[[], None]


def at_event(kind: str, act: Act) -> Arm:
    """`act` the moment the first event of this kind is in the journal."""

    def arm(run: Run) -> None:
        append, done = Journal.__call__, False

        def append_and_act(self: Journal, event: Event) -> None:
            nonlocal done
            append(self, event)
            if event.kind() == kind and not done:
                done = True
                act()

        Journal.__call__ = append_and_act  # type: ignore[method-assign]

    return arm


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(kind: str) -> Arm:
    return at_event(kind, die)


# --- the disk ---------------------------------------------------------------------------------------------------------


class _File:
    """An open file, of which a child changes something."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


class _Counting(_File):
    """Its writes are counted."""

    def __init__(self, stream: Any, step: Act) -> None:
        super().__init__(stream)
        self._step = step

    def write(self, data: Any) -> Any:
        self._step()
        return self._stream.write(data)


def at_disk_steps(step: Act) -> None:
    """Before every write, flush, new folder and renaming of this process, `step` is called, and may raise."""

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            step()
            return function(*arguments, **options)

        return call

    opened = io.open

    def counting_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        stream = opened(file, mode, *rest, **options)
        return _Counting(stream, step) if set(mode) & set("wax+") else stream

    io.open = builtins.open = counting_open  # type: ignore[assignment]
    for name in ("sendfile", "fsync", "mkdir", "rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    writer.exchange = counted(writer.exchange)


def disk_steps_counted(note: Path) -> Arm:
    """How many steps there are is noted in a file."""

    def arm(run: Run) -> None:
        descriptor, done = os.open(note, os.O_WRONLY | os.O_CREAT), 0

        def step() -> None:
            nonlocal done
            done += 1
            os.pwrite(descriptor, str(done).encode(), 0)

        at_disk_steps(step)

    return arm


def at_disk_step(number: int, act: Act, *, from_then_on: bool = False) -> Arm:
    """`act` before the disk step of this number, and, if so, before all that follow."""

    def arm(run: Run) -> None:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if done == number or (from_then_on and done > number):
                act()

        at_disk_steps(step)

    return arm


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_broken() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def read_error_on(path: Path, after: int = -1) -> Arm:
    """Opening this file ends in an input/output error, or, with `after`, reading more than so many bytes of it."""

    def arm(run: Run) -> None:
        opened = io.open

        def failing_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if Path(os.fsdecode(file) if not isinstance(file, int) else str(file)) != path:
                return opened(file, mode, *rest, **options)
            if after < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
            return _Unreadable(opened(file, mode, *rest, **options), str(path), after)

        io.open = builtins.open = failing_open  # type: ignore[assignment]

    return arm


class _Unreadable(_File):
    """Only its beginning can be read."""

    def __init__(self, stream: Any, name: str, after: int) -> None:
        super().__init__(stream)
        self._name, self._after = name, after

    def read(self, size: int = -1) -> Any:
        if size < 0 or self._stream.tell() + size > self._after:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._name)
        return self._stream.read(size)

    def __iter__(self) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), self._name)


# --- memory and time --------------------------------------------------------------------------------------------------


def little_memory(extra: int) -> Arm:
    """The process may take `extra` bytes more than it has."""

    def arm(run: Run) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + extra,) * 2)

    return arm


def device_full_at(call: int, most: int) -> Arm:
    """From a batch's pass through a block of this number on, more than `most` sequences at once do not fit a device."""

    def arm(run: Run) -> None:
        forward, calls = capture.BlockInputs.output, 0

        def output(self: Any, block: Any, index: int, batch: int, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= call and len(self.hidden[batch]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, block, index, batch, **options)

        capture.BlockInputs.output = output  # type: ignore[method-assign]

    return arm


def both(first: Arm, second: Arm) -> Arm:
    def arm(run: Run) -> None:
        first(run)
        second(run)

    return arm


def clock_that(moves: Callable[[int], float]) -> Arm:
    """Every look at the clock shows the time and `moves(how many looks there were)`, in seconds."""

    def arm(run: Run) -> None:
        real, looks = time.time, iter(range(10**9))
        time.time = lambda: real() + moves(next(looks))

    return arm
