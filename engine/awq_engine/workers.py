"""Other processes that take a share of a run's work: pieces go out, results come back in the order of the pieces.

A piece is computed by the same code wherever that happens, and results are used in their order. So neither how many
processes there are nor which of them dies in between changes a bit of what comes out. Tensors go back and forth through
shared memory; a process that dies costs the pieces it had, which are done again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Protocol, TypeVar

import torch

from awq_engine.config import RunConfig
from awq_engine.errors import ResourceError

P = TypeVar("P")
R = TypeVar("R")
DEATHS = 3
"""Of processes over the same pieces, after which it is given up."""
AHEAD = 2
"""Pieces for each process that are under way or done and not yet asked for: bounds the memory of what waits."""


class Workers(Protocol):
    """Whoever computes."""

    away: bool
    """Whether others compute: then tasks, pieces and results must be picklable."""

    def map(self, task: Callable[[P], R], pieces: Iterable[P]) -> Iterator[R]:
        """`task` of each piece, in order."""
        ...

    def close(self) -> None:
        """Send everybody home."""
        ...


class Alone:
    """This process itself."""

    away = False

    def map(self, task: Callable[[P], R], pieces: Iterable[P]) -> Iterator[R]:
        return map(task, pieces)

    def close(self) -> None:
        pass


ALONE: Workers = Alone()


class Processes:
    """Processes of their own on this machine, each with its own GPU where there are several."""

    away = True

    def __init__(self, count: int, threads: int, device: torch.device, warn: Callable[[str], None]) -> None:
        """`threads` of each; `warn` is told of a process that died."""
        self._count = count
        self._warn = warn
        self._settings = (threads, device)
        self._pool = self._new_pool()

    def map(self, task: Callable[[P], R], pieces: Iterable[P]) -> Iterator[R]:
        waiting: deque[tuple[P, Future[R]]] = deque()
        for piece in pieces:
            waiting.append((piece, self._pool.submit(_perform, task, piece)))
            if len(waiting) > AHEAD * self._count:
                yield self._first(task, waiting)
        while waiting:
            yield self._first(task, waiting)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _first(self, task: Callable[[P], R], waiting: deque[tuple[P, Future[R]]]) -> R:
        """The result of the piece that waits longest; what a process that died took along is done again."""
        deaths = 0
        while True:
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool as error:
                deaths += 1
                self._pool.shutdown(wait=False, cancel_futures=True)
                if deaths == DEATHS:
                    raise ResourceError(
                        f"Worker processes died {deaths} times over the same piece of work, most likely because memory "
                        "or its shared part (/dev/shm) ran out; use fewer --workers."
                    ) from error
                self._warn("a worker process died; its part of the work is done again")
                self._pool = self._new_pool()
                again = [(piece, self._pool.submit(_perform, task, piece)) for piece, _ in waiting]
                waiting.clear()
                waiting.extend(again)
            else:
                waiting.popleft()
                return result

    def _new_pool(self) -> ProcessPoolExecutor:
        _allow_many_files()
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, context, _begin, (*self._settings, context.Value("i", 0)))


@contextlib.contextmanager
def hired(config: RunConfig, device: torch.device, warn: Callable[[str], None]) -> Iterator[Workers]:
    """Those that a run asks for, until its end; `warn` is told of trouble that costs only time."""
    threads = torch.get_num_threads()
    if config.on:
        from awq_engine.cluster import Cluster  # Ray is an extra

        workers = Cluster(config.on, config.workers, threads, device, warn)
    elif config.workers > 1:
        workers = Processes(config.workers, threads, device, warn)
    else:
        workers = ALONE
    with contextlib.closing(workers):
        yield workers


def _allow_many_files() -> None:
    """Every tensor in shared memory is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _begin(threads: int, device: torch.device, started: Synchronized[int]) -> None:
    """Make ready a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine says when to stop
    threading.Thread(target=_end_with_the_engine, daemon=True).start()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        with started:
            number = started.value
            started.value += 1
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_the_engine() -> None:
    """A pool's processes would wait for work for ever after a kill -9 of the one that gives it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@torch.no_grad()
def _perform(task: Callable[[Any], Any], piece: Any) -> Any:
    return task(piece)
