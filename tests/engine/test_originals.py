"""The weights a block had, and passes that go no further than they must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from awq_engine.originals import Originals, narrowed
from awq_engine.statistics import read_input


class Block(nn.Module):
    """A norm and two linears; the second linear's call can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.full((1,), 2.0))
        self.second_ran = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.norm(x)) * self.gain
        self.second_ran += 1
        return self.second(x)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(parameter.to(torch.bfloat16) + 0.5)
    return block


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrowed_keeps_every_bit(dtype: torch.dtype):
    """float32 values that came from a narrow dtype go back into one of no more bytes; others stay float32."""
    tensor = (torch.randn(64, generator=torch.Generator().manual_seed(1)) * 3).to(dtype).float()
    found = narrowed(tensor)

    assert torch.equal(found.float(), tensor)
    assert found.element_size() == dtype.itemsize


def test_block_computes_as_it_did(block: Block):
    """Inside the context the original function, outside the present one, with the very same present tensors."""
    x = torch.randn(3, 8)
    originals, before = Originals(block), block(x)
    for parameter in block.parameters():
        parameter.mul_(1.5)
    present = {name: parameter.data_ptr() for name, parameter in block.named_parameters()}
    changed = block(x)
    with originals.computing():
        assert torch.equal(block(x), before)
        assert torch.equal(block(x), before)

    assert torch.equal(block(x), changed)
    assert {name: parameter.data_ptr() for name, parameter in block.named_parameters()} == present
    originals.restore()
    assert torch.equal(block(x), before)


def test_stopped_pass_leaves_no_trace(block: Block):
    """A pass that ends in the middle gives every module its present weights back."""
    x, originals = torch.randn(3, 8), Originals(block)
    block.first.weight.mul_(2)
    changed = block(x)
    for _ in range(2):
        with originals.computing():
            read_input(block.second, lambda: block(x), 1)

    assert torch.equal(block(x), changed)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in block.modules())


def test_pass_stops_when_all_is_read(block: Block):
    """Where it is known how often the linear is called, the pass ends right there, and reads the same."""
    x = torch.randn(3, 8)
    reads = [read_input(block.first, lambda: block(x), calls) for calls in (0, 1, 1)]

    assert torch.equal(reads[0], block.norm(x))
    assert torch.equal(reads[0], reads[2])
    assert block.second_ran == 1


def test_what_never_runs_reads_nothing_where_the_linear_is():
    linear = nn.Linear(8, 4, device="meta")
    assert read_input(linear, lambda: None).device == linear.weight.device
