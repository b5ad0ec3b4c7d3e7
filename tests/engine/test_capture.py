"""What blocks are called with, whatever they hand on, and which architectures are refused rather than run wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import calibration_ids, difference, examine, quiet, write_model

from awq_engine.capture import BlockInputs, capture_inputs, finish_forward
from awq_engine.checkpoint import read_checkpoint
from awq_engine.errors import BadInputError
from awq_engine.folds import find_fold, input_groups
from awq_engine.runtime import load_dequantized
from awq_engine.skeleton import Skeleton, build_skeleton

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = calibration_ids()[:2]


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last two blocks read keys and values of the first two."""
    quiet()
    return write_model("gemma4_text", tmp_path_factory.mktemp("gemma4"))


def run_through(skeleton: Skeleton, inputs: BlockInputs, before: Callable[..., None] = lambda *_: None) -> torch.Tensor:
    """The logits after all blocks; `before` may run each block in other ways first."""
    with torch.no_grad():
        for index in range(len(skeleton.blocks)):
            with skeleton.loaded_block(index) as block:
                before(inputs, block, index)
                inputs.advance(block, index)
    return finish_forward(skeleton, IDS[:1], inputs.hidden[0])


def test_shared_keys_and_values_reach_later_blocks(gemma4: Path):
    """And trial runs of a block, with whatever weights, leave no trace in them."""
    skeleton = build_skeleton(read_checkpoint(gemma4))
    with torch.no_grad():
        expected = load_dequantized(gemma4).model(input_ids=IDS[:1], use_cache=False).logits

    def spoil(inputs: BlockInputs, block: nn.Module, index: int) -> None:
        saved = {name: p.clone() for name, p in block.named_parameters()}
        for parameter in block.parameters():
            parameter.mul_(1.5)
        list(inputs.outputs(block, index))
        for name, parameter in block.named_parameters():
            parameter.copy_(saved[name])

    inputs = capture_inputs(skeleton, list(IDS.split(1)))
    assert inputs.handover is not None
    assert difference(run_through(skeleton, inputs, spoil), expected) < 1e-5


def test_streams_carry_their_own_values(gemma4: Path):
    """What one stream leaves to later blocks does not show in its fork."""
    skeleton = build_skeleton(read_checkpoint(gemma4))
    inputs = capture_inputs(skeleton, [IDS[:1]])
    expected = run_through(skeleton, inputs.fork())
    other = inputs.fork()

    def lead(inputs: BlockInputs, block: nn.Module, index: int) -> None:
        block.self_attn.q_proj.weight.data.mul_(2)
        other.advance(block, index)
        block.self_attn.q_proj.weight.data.div_(2)

    assert torch.equal(run_through(skeleton, inputs, lead), expected)
    assert not torch.equal(other.hidden[0], inputs.hidden[0])


class _Sharing(nn.Module):
    """Attention in which values are left for later blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.o = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, kept: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        values = self.v(x)
        if kept is not None:
            kept["values"] = values
        return x + self.o(values)


@pytest.mark.parametrize("shared", [False, True])
def test_values_that_later_blocks_read_are_no_place_to_fold(shared: bool):
    """The block itself would not notice."""
    from awq_engine.capture import BlockCall
    from awq_engine.carried import Carried, Handover, Mapping

    torch.manual_seed(0)
    block = _Sharing().requires_grad_(False)
    call = BlockCall((), {"kept": Mapping(0)} if shared else {}, None)
    handover = Handover([Carried(({},))]) if shared else None
    inputs = BlockInputs([torch.randn(1, 8, 32)], [[call]], torch.device("cpu"), handover=handover)
    groups = input_groups(block, ["o"], lambda: inputs.handed_on(block, 0))
    fold = find_fold(block, groups[0], lambda: inputs.handed_on(block, 0), 1).fold

    assert (fold is None) == shared


def test_blocks_that_text_does_not_run_through_pass_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """mllama's second block here attends to a picture; its linears are rounded without data."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    found = examine("mllama", tmp_path)

    assert found.linears["cross_attn.q_proj"] == 1
    assert max(found.stream, found.folded, found.reloaded, found.reference) < 1e-4


@dataclass
class _Spoiled:
    """A tiny llama whose outer forward does something the blocks cannot be taken out of."""

    skeleton: Skeleton

    def refusal(self, change: Callable[[nn.ModuleList], Any]) -> str:
        change(self.skeleton.blocks)
        with pytest.raises(BadInputError) as caught:
            capture_inputs(self.skeleton, [IDS[:1]])
        return str(caught.value)


@pytest.fixture
def spoiled(tmp_path: Path) -> _Spoiled:
    quiet()
    return _Spoiled(build_skeleton(read_checkpoint(write_model("llama", tmp_path))))


def test_refuses_sums_between_blocks(spoiled: _Spoiled):
    def add_between(blocks: nn.ModuleList) -> None:
        blocks[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))

    assert "computes something between decoder blocks 0 and 1" in spoiled.refusal(add_between)


def test_refuses_sums_in_place_between_blocks(spoiled: _Spoiled):
    def add_between(blocks: nn.ModuleList) -> None:
        blocks[1].register_forward_pre_hook(lambda _, args: (args[0].add_(1), *args[1:]))

    assert "computes something between decoder blocks 0 and 1" in spoiled.refusal(add_between)


def test_refuses_loops(spoiled: _Spoiled):
    """Blocks that run again, as in recurrent depth."""

    def run_again(blocks: nn.ModuleList) -> None:
        blocks[2].register_forward_hook(lambda _, args, output: blocks[1](output, *args[1:]))

    assert "runs decoder block 1 after block 2" in spoiled.refusal(run_again)
