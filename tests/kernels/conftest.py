"""Outputs filled with NaN."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def nan_filled_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so that an output no kernel wrote is seen."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # pyright: ignore
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
