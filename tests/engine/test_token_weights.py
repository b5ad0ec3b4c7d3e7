"""A token of weight two counts as two tokens, one of weight zero not at all."""

from __future__ import annotations

import torch
from torch import nn

from awq_engine.capture import BlockCall, BlockInputs
from awq_engine.drift import Pairs, ReadPairs
from awq_engine.originals import Originals
from awq_engine.passes import Passes
from awq_engine.statistics import InputStatistics, Moments, MomentsByName, ReadInputs, weigh
from awq_engine.workers import ALONE

IN = 6
WEIGHTS = [torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]])]


def batches(seed: int) -> list[torch.Tensor]:
    """float32 [2, 3, IN] twice."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, IN, generator=generator) for _ in WEIGHTS]


def inputs_of(hidden: list[torch.Tensor], weights: list[torch.Tensor] | None) -> BlockInputs:
    return BlockInputs(hidden, [[BlockCall((), {}, None)] * len(hidden)], torch.device("cpu"), weights)


def spelled_out(hidden: list[torch.Tensor]) -> BlockInputs:
    """Every token as often as its weight says, one batch of one sequence each."""
    pairs = zip(hidden, WEIGHTS, strict=True)
    return inputs_of([h.reshape(-1, IN).repeat_interleave(w.reshape(-1).int(), dim=0)[None] for h, w in pairs], None)


def statistics(block: nn.Sequential, inputs: BlockInputs) -> InputStatistics:
    moments = Passes(ALONE, block, 0, inputs).add_up(ReadInputs(["0"]), MomentsByName())
    return moments.found["0"].means(IN, torch.device("cpu"))


def block(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, IN))


def test_weighted_statistics_are_those_of_repeated_tokens() -> None:
    found = statistics(block(0), inputs_of(batches(1), WEIGHTS))
    expected = statistics(block(0), spelled_out(batches(1)))
    torch.testing.assert_close(found.gram, expected.gram)
    torch.testing.assert_close(found.act_mean, expected.act_mean)
    assert (found.n_tokens, expected.n_tokens) == (12, 9)


def test_weighted_cross_statistics_are_those_of_repeated_tokens() -> None:
    """The second linear reads other things than it originally did, as after rounding."""
    present, before = block(7), batches(2)
    originals, second = Originals(present), present.get_submodule("2")
    assert isinstance(second, nn.Linear)
    present.load_state_dict(block(0).state_dict())
    found, expected = (
        Passes(ALONE, present, 0, here, there, originals).add_up(ReadPairs("2", 1), Pairs()).means(second)[1]
        for here, there in (
            (inputs_of(batches(1), WEIGHTS), inputs_of(before, WEIGHTS)),
            (spelled_out(batches(1)), spelled_out(before)),
        )
    )
    torch.testing.assert_close(found, expected)


def test_linear_called_twice_in_a_pass_weighs_its_tokens_both_times() -> None:
    rows, sum_of_weights = weigh(torch.ones(4, 1), torch.tensor([[0.0, 2.0]]))
    assert rows.flatten().tolist() == [0, 2, 0, 2]
    assert sum_of_weights == 4


def test_linear_behind_a_router_counts_its_tokens_alike() -> None:
    """Four of six tokens arrive: which weights they had is not known."""
    x, moments = batches(1)[0].reshape(-1, IN)[:4], Moments()
    moments.add(x, WEIGHTS[0])
    found = moments.means(IN, x.device)
    torch.testing.assert_close(found.gram, x.T @ x / 4)


def test_leading_batches_keep_their_weights() -> None:
    first = inputs_of(batches(1), WEIGHTS).first(6)
    assert len(first) == 1
    outputs = first.outputs(block(0), 0)
    next(outputs)
    assert first.token_weights() is WEIGHTS[0]


def test_tokens_without_weights_all_count() -> None:
    inputs = inputs_of(batches(1), None)
    assert inputs.token_weights() is None
    rows = torch.cat(batches(1)).reshape(-1, IN)
    torch.testing.assert_close(statistics(block(0), inputs).gram, rows.T @ rows / 12)
