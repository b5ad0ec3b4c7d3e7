"""Embeddings and head, which can be larger than any block, without ever holding one whole.

A text uses few rows of an embedding: they are read when they are asked for, and a device gets no others; a model that
uses the table in another way gets it whole.
A head is used once, for a handful of tokens: it is read and multiplied some rows at a time, or dequantized so where it
is quantized. Both read exactly the bytes they need from the file, widened to float32, so the numbers are those of the
loaded model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from awq_engine.checkpoint import TensorInfo
from awq_engine.errors import BadInputError
from awq_engine.quantize import row_slices
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize

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


Pieces = Callable[[], Iterator[torch.Tensor]]
"""Gives the rows of a matrix from the first to the last, some at a time, as floats [rows, width], each time anew."""


def stored_pieces(info: TensorInfo) -> Iterator[torch.Tensor]:
    """The rows of a stored float tensor, as stored."""
    for rows in row_chunks(info):
        yield read_rows(info, *rows)


def packed_pieces(weight: IntWeight) -> Iterator[torch.Tensor]:
    """The rows of a quantized weight, as float32."""
    for rows in row_slices(weight.q):
        yield dequantize(
            replace(weight, q=weight.q[rows], scale=weight.scale[rows], zero_point=weight.zero_point[rows])
        )


def refuse_non_finite(info: TensorInfo) -> None:
    """Raise `BadInputError` when a stored float tensor holds NaN or infinite values."""
    if info.dtype not in TORCH_DTYPES or not info.numel or not info.shape:
        return
    if not all(torch.isfinite(read_rows(info, *rows)).all() for rows in row_chunks(info)):
        raise BadInputError(f"The tensor {info.name} holds NaN or infinite values; the model is damaged.")


class TableOnDemand(torch.Tensor):
    """An embedding's table, float32, of which a look-up reads only its rows; any other use of it reads all of them.

    It takes no memory itself: its values are on the host, and a device gets those that it is about to look up.
    """

    _info: TensorInfo
    _rows: torch.Tensor
    """float32 [rows, width] on the host; memory that is not touched is not taken."""
    _known: torch.Tensor
    """bool [rows]: those that have been read."""

    @classmethod
    def of(cls, info: TensorInfo, device: torch.device) -> TableOnDemand:
        """The table that is stored as `info`."""
        nothing = torch.zeros((), dtype=torch.float32, device=device).expand(info.shape)
        table = torch.Tensor._make_subclass(cls, nothing)
        table._info, table._rows = info, torch.empty(info.shape, dtype=torch.float32)
        table._known = torch.zeros(info.shape[0], dtype=torch.bool)
        table._is_param = True  # type: ignore[attr-defined] - modules know parameters by it
        return table

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows with these numbers, int64 [any] on the host, as float32 [any, width] on the table's device."""
        new = rows[~self._known[rows]]
        for row in new.tolist():
            self._rows[row] = read_rows(self._info, row, row + 1)[0].float()
        self._known[new] = True
        return self._rows[rows].to(self.device)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of `ids`, integers [...], as float32 [..., width]."""
        rows, places = ids.unique(return_inverse=True)
        return F.embedding(places, self.read(rows.long().cpu()))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.embedding:  # whose other arguments matter to gradients alone
                given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
                return given["weight"].look_up(given["input"])
            if func.__name__ == "__get__" and not isinstance(found := func(*args), torch.Tensor):
                return found  # shape and the like hold no values
            if func is torch.empty_like:
                return func(*args, **kwargs)
            if func is torch.Tensor.detach:  # what `state_dict` does with everything
                return args[0]
            args, kwargs = tree_map_only(cls, lambda x: x.read(torch.arange(len(x._known))), (args, kwargs))
            return func(*args, **kwargs)


class _StreamedProduct(torch.autograd.Function):
    """x W^T with W as it is read; for the gradient it is read again, instead of being kept since."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pieces: Pieces) -> torch.Tensor:
        ctx.pieces, ctx.width = pieces, x.shape[-1]
        return torch.cat([F.linear(x, piece.to(x.device, x.dtype)) for piece in pieces()], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        total = gradient.new_zeros(*gradient.shape[:-1], ctx.width)
        start = 0
        for piece in ctx.pieces():
            total += gradient[..., start : start + len(piece)] @ piece.to(gradient.device, gradient.dtype)
            start += len(piece)
        return total, None


@contextlib.contextmanager
def streamed_head(head: nn.Linear, pieces: Pieces) -> Iterator[None]:
    """Inside, the head multiplies by `pieces` as they come; its parameter is not used."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        outputs = _StreamedProduct.apply(hidden, pieces)
        return outputs if head.bias is None else outputs + head.bias

    head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
