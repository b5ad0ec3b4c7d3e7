"""Hidden states on disk: what travels from block to block when memory is short.

One unnamed file beside the run's other files, which the system removes even when the engine is killed. Batches go
through plain reads and writes, so no more than one of them is in memory, and come back bit for bit.
"""

from __future__ import annotations

import errno
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from awq_engine.errors import ResourceError


class Batches(Protocol):
    """Batches of hidden states, in order; a list is one."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...
    def __getitem__(self, index: int, /) -> torch.Tensor: ...
    def __setitem__(self, index: int, value: torch.Tensor, /) -> None: ...
    def append(self, value: torch.Tensor, /) -> None: ...


NewBatches = Callable[[], Batches]
"""Makes an empty store: `list`, or one on disk."""


class SpilledBatches:
    """Batches in a file in `folder`; each is a new tensor when it is read."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> torch.Tensor:
        start, shape, dtype = self._places[index]
        data = bytearray(shape.numel() * dtype.itemsize)
        self._file.seek(start)
        self._file.readinto(data)  # pyright: ignore[reportAttributeAccessIssue]
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def __setitem__(self, index: int, value: torch.Tensor) -> None:
        start, shape, dtype = self._places[index]
        assert (value.shape, value.dtype) == (shape, dtype), "a batch keeps its shape"
        self._write(start, value)

    def append(self, value: torch.Tensor) -> None:
        self._write(self._end, value)
        self._places.append((self._end, value.shape, value.dtype))
        self._end += value.nbytes

    def _write(self, start: int, value: torch.Tensor) -> None:
        try:
            self._file.seek(start)
            self._file.write(value.contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceError(
                "The disk is too full for the hidden states that do not fit into memory; free some space there, or use "
                "fewer --samples."
            ) from error


def copied(batches: Iterable[torch.Tensor], new: NewBatches) -> Batches:
    """The same batches in a store of their own."""
    store = new()
    for batch in batches:
        store.append(batch)
    return store
