"""Embeddings and head, which can be larger than any block, without ever holding one whole.

A text uses few rows of an embedding: its table is allocated but not touched, and rows are read when they are asked for.
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


@contextlib.contextmanager
def rows_on_demand(embedding: nn.Embedding, info: TensorInfo, device: torch.device) -> Iterator[None]:
    """Inside, the embedding's table gets the rows that it is asked for just before it looks them up."""
    table = torch.empty(info.shape, dtype=torch.float32, device=device)  # memory that is not touched is not taken
    known = torch.zeros(info.shape[0], dtype=torch.bool)

    def look_up(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = (args[0] if args else kwargs["input"]).unique().long().cpu()
        new = rows[~known[rows]]
        for row in new.tolist():
            table[row] = read_rows(info, row, row + 1)[0].float()
        known[new] = True

    embedding.weight = nn.Parameter(table, requires_grad=False)
    handle = embedding.register_forward_pre_hook(look_up, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


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
