"""Embeddings and heads that are never whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from awq_engine import outer
from awq_engine.checkpoint import TensorInfo, read_header
from awq_engine.errors import BadInputError
from awq_engine.outer import TableOnDemand, read_rows, refuse_non_finite, stored_pieces, streamed_head


@pytest.fixture
def stored(tmp_path: Path) -> tuple[torch.Tensor, TensorInfo]:
    weight = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"other": torch.zeros(3), "weight": weight}, tmp_path / "x.safetensors")
    return weight, read_header(tmp_path / "x.safetensors")["weight"]


def test_rows_are_the_stored_ones(stored: tuple[torch.Tensor, TensorInfo]):
    weight, info = stored
    assert torch.equal(read_rows(info, 7, 19), weight[7:19])


def test_only_rows_in_use_are_read(stored: tuple[torch.Tensor, TensorInfo], monkeypatch: pytest.MonkeyPatch):
    """Each row is read once, when it is first asked for."""
    weight, info = stored
    read: list[int] = []
    monkeypatch.setattr(outer, "read_rows", lambda info, a, b: read.append(a) or read_rows(info, a, b))
    embedding = nn.Embedding(50, 6)
    embedding._parameters["weight"] = TableOnDemand.of(info, torch.device("cpu"))  # type: ignore[assignment]
    for ids in (torch.tensor([[3, 9], [9, 0]]), torch.tensor([9, 4])):
        assert torch.equal(embedding(ids), weight.float()[ids])

    assert embedding.weight.shape == (50, 6)
    assert read == [0, 3, 9, 4]


def test_a_table_that_is_listed_or_given_up_is_not_read(stored: tuple[torch.Tensor, TensorInfo]):
    """Loading other parameters lists all that there are, and emptying one asks for its shape."""
    embedding = nn.Embedding(50, 6)
    embedding._parameters["weight"] = table = TableOnDemand.of(stored[1], torch.device("cpu"))  # type: ignore[assignment]
    empty = torch.empty_like(embedding.state_dict()["weight"], device="meta")

    assert empty.shape == (50, 6)
    assert not table._known.any()


@pytest.mark.parametrize("use", [lambda w: w[1:3] * 2, lambda w: w + w, lambda w: torch.stack([w.data, w])])
def test_a_table_used_otherwise_is_read_whole(stored: tuple[torch.Tensor, TensorInfo], use: Callable[..., Any]):
    """Some models read the weight of an embedding past its module."""
    weight, info = stored
    table = TableOnDemand.of(info, torch.device("cpu"))

    assert torch.equal(use(table), use(weight.float()))


@pytest.mark.parametrize("bias", [False, True])
def test_streamed_head_is_the_head(
    stored: tuple[torch.Tensor, TensorInfo], monkeypatch: pytest.MonkeyPatch, bias: bool
):
    weight, info = stored
    monkeypatch.setattr(outer, "CHUNK_BYTES", 100)
    head = nn.Linear(6, 50, bias=bias)
    x = torch.randn(2, 3, 6, requires_grad=True)
    wanted = torch.randn(2, 3, 50)
    with streamed_head(head, lambda: stored_pieces(info)):
        found = head(x)
        (gradient,) = torch.autograd.grad(found, x, wanted)

    assert torch.allclose(found, nn.functional.linear(x, weight.float(), head.bias), atol=1e-6)
    assert torch.allclose(gradient, wanted @ weight.float(), atol=1e-5)
    assert "forward" not in vars(head)


def test_damage_is_found_in_any_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outer, "CHUNK_BYTES", 100)
    weight = torch.zeros(50, 6)
    save_file({"fine": weight, "broken": weight.clone().index_fill_(0, torch.tensor([49]), torch.inf)}, tmp_path / "x")
    tensors = read_header(tmp_path / "x")

    refuse_non_finite(tensors["fine"])
    with pytest.raises(BadInputError, match="broken holds NaN or infinite"):
        refuse_non_finite(tensors["broken"])
