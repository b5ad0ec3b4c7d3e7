"""Linears that never run: which stay in floats, which are rounded without data."""

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import examine

from awq_engine.folds import input_groups
from awq_engine.originals import Originals
from awq_engine.statistics import Moments
from awq_engine.uncalled import read_past_module, uncalled


class _Block(nn.Module):
    """One linear that runs, one whose weight is read past it, one of both kinds, one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.past, self.both, self.idle = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(self.called(x) @ self.past.weight) @ self.both.weight


def test_what_is_read_past_its_module_is_told_apart():
    """Doubling the weight shows whether others read it; nothing is left changed."""
    torch.manual_seed(0)
    block, x = _Block().requires_grad_(False), torch.randn(1, 4, 32)
    before = {name: p.clone() for name, p in block.named_parameters()}
    names, originals = ["called", "past", "both", "idle"], Originals(block)

    def forward() -> torch.Tensor:
        with originals.computing():
            return block(x)

    assert uncalled(names, input_groups(block, names, lambda: block(x))) == ["past", "idle"]
    assert read_past_module(block, names, forward) == ["past", "both"]
    assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())


def test_unseen_inputs_count_alike():
    """Without a token, every input channel matters the same."""
    statistics = Moments().means(8, torch.device("cpu"))

    assert statistics.n_tokens == 0
    assert torch.equal(statistics.gram, torch.eye(8))
    assert torch.equal(statistics.act_mean, torch.ones(8))


@pytest.mark.filterwarnings("ignore")
def test_mamba_keeps_the_weight_it_reads_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its step projection stays in floats, and so does not end up where no reader could use it."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    found = examine("mamba", tmp_path)

    assert sorted(found.linears) == ["mixer.in_proj", "mixer.out_proj", "mixer.x_proj"]
    assert found.skipped == {"mixer.dt_proj": "its weight is read past the module"}
    assert max(found.reloaded, found.reference) < 1e-4
