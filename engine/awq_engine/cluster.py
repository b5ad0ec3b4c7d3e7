"""A run's work on a Ray cluster that is there already: `quantize --on ray://host:10001`.

Ray decides what runs where, moves the tensors, and does again what a process or a machine that died had begun. This
process reads the model, keeps the journal and writes the result, so the cluster needs Ray, torch and transformers, but
neither the model nor a shared disk; the engine's own code is sent along.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import awq_engine
import awq_kernels
from awq_engine.config import check_cluster
from awq_engine.errors import NetworkError, ResourceError, first_line
from awq_engine.workers import AHEAD, DEATHS, P, R


class Cluster:
    """The processes of a Ray cluster; as many pieces at a time as it has room for."""

    away = True

    def __init__(
        self, address: str, most: int, threads: int, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        """
        Args:
            address: `ray://host:port`, or any other that `ray.init` takes.
            most: pieces at a time at most; 1 for as many as there is room for.
            threads: of a piece, each of which takes one of the cluster's processors.
            warn: is told where its results may be other bits than this machine's.
        Raises:
            UsageError: Ray is not installed.
            NetworkError: nobody answers at the address.
        """
        check_cluster(address)
        ray = self._ray = importlib.import_module("ray")
        packages = [str(Path(package.__path__[0])) for package in (awq_engine, awq_kernels)]
        try:
            ray.init(address, runtime_env={"py_modules": packages}, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise NetworkError(f"The Ray cluster at {address} cannot be reached: {first_line(error)}.") from error
        gpus = 1 if device.type == "cuda" else 0
        room = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0)) // (gpus or threads)
        if not room:
            need = "a GPU" if gpus else f"{threads} processors"
            raise ResourceError(f"The Ray cluster at {address} has no room for a piece of work, which takes {need}.")
        self._count = room if most == 1 else min(room, most)
        self._threads = threads
        self._perform = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=DEATHS)(_perform)
        self._warn_of_others(warn)

    def map(self, task: Callable[[P], R], pieces: Iterable[P]) -> Iterator[R]:
        shared, waiting = self._ray.put(task), deque[Any]()
        for piece in pieces:
            waiting.append(self._perform.remote(shared, self._ray.put(piece), self._threads))
            if len(waiting) > AHEAD * self._count:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._ray.shutdown()

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            why = f"The Ray cluster did not do its part: {first_line(error)}."
            raise NetworkError(f"{why} The run can be resumed.") from error

    def _warn_of_others(self, warn: Callable[[str], None]) -> None:
        here, there = _versions(None), next(self.map(_versions, [None]))
        if here != there:
            warn(f"the cluster has {there}, this machine {here}: the result may differ in last bits")


def _versions(_: object) -> str:
    return f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}"


@torch.no_grad()
def _perform(task: Callable[[Any], Any], piece: Any, threads: int) -> Any:
    torch.set_num_threads(threads)
    return task(piece)
