"""Embeddings and head, which can be larger than any block, without ever holding one whole.

A text uses few rows of an embedding: its table is allocated but not touched, and rows are read when they are asked
for; a model that uses the table in another way gets it whole.
A head is used once, for a handful of tokens: it is read and multiplied some rows at a time. Both read exactly the bytes
they need from the file, widened to float32, so the numbers are those of the loaded model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from awq_engine.checkpoint import TensorInfo
from awq_engine.errors import BadInputError

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_BYTES = 64 << 20
"""Read at a time."""


def has_rows(info: TensorInfo) -> bool:
    """Whether the tensor is a matrix of floats, whose rows can be read one by one."""
    return len(info.shape) == 2 and info.dtype in TORCH_DTYPES


def read_rows(info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a stored float tensor, as stored [stop - start, ...]."""
    row_bytes = info.nbytes // info.shape[0]
    data = bytearray((stop - start) * row_bytes)
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.start + start * row_bytes)
        if file.readinto(data) != len(data):
            raise BadInputError(f"{info.file} ended while '{info.name}' was being read; download it again.")
    return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).view(stop - start, *info.shape[1:])


def row_chunks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are read at a time."""
    step = max(1, CHUNK_BYTES * info.shape[0] // max(info.nbytes, 1))
    for start in range(0, info.shape[0], step):
        yield start, min(start + step, info.shape[0])


def refuse_non_finite(info: TensorInfo) -> None:
    """Raise `BadInputError` when a stored float tensor holds NaN or infinite values."""
    if info.dtype not in TORCH_DTYPES or not info.numel or not info.shape:
        return
    if not all(torch.isfinite(read_rows(info, *rows)).all() for rows in row_chunks(info)):
        raise BadInputError(f"The tensor {info.name} holds NaN or infinite values; the model is damaged.")


class TableOnDemand(torch.Tensor):
    """An embedding's table, float32, of which a look-up reads only its rows; any other use of it reads all of them."""

    _info: TensorInfo
    _known: torch.Tensor
    """bool [rows]: those that have been read."""

    @classmethod
    def of(cls, info: TensorInfo, device: torch.device) -> TableOnDemand:
        """The table that is stored as `info`."""
        table = torch.empty(info.shape, dtype=torch.float32, device=device)  # memory that is not touched is not taken
        table = torch.Tensor._make_subclass(cls, table)
        table._info, table._known = info, torch.zeros(info.shape[0], dtype=torch.bool)
        table._is_param = True  # type: ignore[attr-defined] - modules know parameters by it
        return table

    def read(self, rows: torch.Tensor) -> None:
        """Read those of the rows with these numbers, int64 [any], that have not been read."""
        new = rows[~self._known[rows]]
        for row in new.tolist():
            self[row] = read_rows(self._info, row, row + 1)[0].float()
        self._known[new] = True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.embedding:
                given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
                given["weight"].read(given["input"].unique().long().cpu())
            elif func.__name__ != "__get__" or isinstance(
                func(*args), torch.Tensor
            ):  # shape and the like hold no values
                for table in (x for x in tree_leaves((args, kwargs)) if isinstance(x, cls)):
                    table.read(torch.arange(len(table._known)))
            return func(*args, **kwargs)


@contextlib.contextmanager
def streamed_head(head: nn.Linear, info: TensorInfo) -> Iterator[None]:
    """Inside, the head multiplies by its weight as that is read; its parameter is not used."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        parts = []
        for start, stop in row_chunks(info):
            weight = read_rows(info, start, stop).to(hidden.device, hidden.dtype)
            parts.append(F.linear(hidden, weight, None if head.bias is None else head.bias[start:stop]))
        return torch.cat(parts, -1)

    head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
