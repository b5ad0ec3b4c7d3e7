"""Linears that are rounded already: what they compute, and that floats are there only while they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from awq_engine.originals import Originals
from awq_engine.quantize import choose_qparams, group_ranges, round_to_nearest, to_int_weight
from awq_engine.rounded import Rounded
from awq_engine.spec import QuantSpec
from awq_engine.statistics import read_input

SPEC = QuantSpec(bits=4, group_size=32, symmetric=False)


@pytest.fixture
def block() -> Any:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32)).requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return block


def round_first(block: Any) -> Rounded:
    weight = block.get_parameter("0.weight").data
    qparams, rounded = choose_qparams(*group_ranges(weight, SPEC), SPEC), Rounded(block)
    rounded.add("0", to_int_weight(round_to_nearest(weight, SPEC), qparams, SPEC))
    return rounded


def test_floats_exist_only_while_the_linear_runs(block: Any):
    x, sizes = torch.randn(3, 64), []
    wanted = nn.functional.linear(x, round_to_nearest(block.get_parameter("0.weight"), SPEC), block[0].bias)
    rounded = round_first(block)
    block[0].register_forward_hook(lambda module, *_: sizes.append(module.weight.numel()))
    block[2].register_forward_pre_hook(lambda *_: sizes.append(block.get_parameter("0.weight").numel()))

    assert torch.equal(block(x), block[2](block[1](wanted)))
    assert sizes == [0, 0, 0]
    rounded.fill()
    assert torch.equal(block[0](x), wanted)
    assert block.get_parameter("0.weight").shape == (64, 64)
    assert not block[0]._forward_pre_hooks


def test_originals_compute_in_their_place(block: Any):
    """Before and after a pass with the original weights, which may be stopped, the rounded ones count."""
    x, originals = torch.randn(3, 64), Originals(block)
    before = block(x)
    rounded = round_first(block)
    changed = block(x)
    for _ in range(2):
        with originals.computing():
            assert torch.equal(block(x), before)
            read_input(block[2], lambda: block(x), 1)
        assert block.get_parameter("0.weight").numel() == 0
        assert torch.equal(block(x), changed)
    rounded.forget()
    originals.restore()
    assert torch.equal(block(x), before)
    assert rounded.weights == {}
