"""Safetensors files opened for their tensors; what the library refuses names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from awq_engine.errors import BadInputError, last_clause


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """The open file, for tensors on the CPU; `BadInputError` inside or here when it is damaged."""
    try:
        with safe_open(str(file), "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise BadInputError(f"{file} cannot be read: {last_clause(error)}") from error
