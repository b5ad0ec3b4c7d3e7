"""Where the kernels are tested, and outputs filled with NaN.

Triton's kernels run on a GPU where there is one, otherwise in Triton's interpreter. The interpreter must be chosen
before triton is imported for the first time, which other tests may have done: `test_interpreted.py` starts one.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["test_w4a16.py"]


@pytest.fixture
def nan_filled_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so that an output no kernel wrote is seen."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # pyright: ignore
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
