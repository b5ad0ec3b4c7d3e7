"""How fast a run's output is on this machine: the result of a side job, as the app reads it and `bench --json` says it.

Standard library only: the app imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from awq_engine.runs import Run
from awq_engine.shapes import built, check_of
from awq_engine.side_jobs import SideJob

SPEED = SideJob("speed", "measuring-speed", "awq_engine.speed_worker")


@dataclass(frozen=True)
class Product:
    """One weight times a number of tokens."""

    out_features: int
    in_features: int
    bits: int
    group_size: int
    count: int
    """How often the model has this shape; 1 without a model."""
    tokens: int
    backend: str
    seconds: float
    """The median."""
    spread: float
    """Between the quartiles, relative to the median."""
    bytes_per_second: float
    share_of_copy: float
    """Of the bandwidth at which this machine copies memory."""
    times_floats: float
    """How often as fast as the same product in floats (16 bits on a GPU, 32 on a CPU)."""
    relative_error: float
    """Against float64."""


@dataclass(frozen=True)
class Writing:
    """How fast the whole model writes, as in a chat."""

    tokens: int
    tokens_per_second: float
    """After the first."""
    seconds_to_first_token: float
    """Of a prompt of a few words."""
    decoding: str
    """Which decoder, and why, as a clause."""


@dataclass(frozen=True)
class Speeds:
    """Of one machine."""

    device: str
    backend: str
    copy_bytes_per_second: float
    products: tuple[Product, ...]
    writing: Writing | None = None
    """None where no whole model was measured."""


def read_speeds(run: Run) -> Speeds | None:
    """What was measured last on the run's output, or None."""
    data = SPEED.result(run)
    device, backend, copy, products = map(data.get, ("device", "backend", "copy_bytes_per_second", "products"))
    if not (isinstance(device, str) and isinstance(backend, str) and check_of(float)(copy)):
        return None
    found = [built(Product, product) for product in products] if isinstance(products, list) else [None]
    known = tuple(product for product in found if product is not None)
    if len(known) < len(found):
        return None
    return Speeds(device, backend, float(copy or 0), known, built(Writing, data.get("writing")))
