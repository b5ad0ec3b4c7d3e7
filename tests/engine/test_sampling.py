"""The next token: in the nucleus, by the probabilities, the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from awq_engine.errors import AwqError, UsageError
from awq_engine.sampling import Sampler, sample
from awq_engine.sampling_settings import Sampling


def test_sampling_stays_in_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.05, 0.6, 0.3, 0.05]))
    generator = torch.Generator().manual_seed(0)
    found = {sample(logits, Sampling(temperature=1.0, top_p=0.8), generator) for _ in range(200)}
    assert found == {1, 2}
    assert sample(logits, Sampling(temperature=1.0, top_p=0.01), generator) == 1
    assert sample(logits, Sampling(temperature=0), generator) == 1


def test_a_nucleus_wider_than_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens are looked at first; when they do not reach top_p, all are."""
    logits, sampling = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.35, 0.05])), Sampling(temperature=1.0, top_p=0.9)
    draws = []
    for nucleus in (1, 5):
        monkeypatch.setattr("awq_engine.sampling.NUCLEUS", nucleus)
        generator = torch.Generator().manual_seed(0)
        draws.append([sample(logits, sampling, generator) for _ in range(200)])
    assert draws[0] == draws[1]
    assert set(draws[0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1.0, 0.9999])
def test_sampling_follows_the_probabilities(top_p: float) -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(logits, Sampling(temperature=1.0, top_p=top_p), generator) for _ in range(3000)])
    assert torch.bincount(drawn).float().div(3000).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.04)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(AwqError, match="NaN"):
        sample(torch.tensor([1.0, float("nan")]), Sampling(temperature=0), torch.Generator())


@pytest.mark.parametrize(
    "given_settings",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"seed": -1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"min_p": float("nan")},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
        {"stop": ("",)},
        {"stop": ("a",) * 17},
    ],
)
def test_settings_that_make_no_sense_are_refused(given_settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given_settings))):
        Sampling(**given_settings)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.3, top_p=1.0, top_k=5),
        Sampling(temperature=0.7, top_p=0.8, top_k=12),
        Sampling(temperature=1.5, top_p=1.0, min_p=0.2),
        Sampling(temperature=1.1, top_p=0.9, min_p=0.1, repetition_penalty=1.8),
        Sampling(temperature=2.0, top_p=0.95, top_k=30, min_p=0.02, repetition_penalty=0.7),
        Sampling(temperature=0.9, top_p=1.0, top_k=1000),
    ],
    ids=lambda s: f"t{s.temperature}-p{s.top_p}-k{s.top_k}-m{s.min_p}-r{s.repetition_penalty}",
)
def test_the_tokens_left_are_those_that_transformers_leaves(sampling: Sampling) -> None:
    """Its processors in its order; the shares drawn are its probabilities."""
    prompt = [3, 4, 5, 6, 7]
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    expected = chain(torch.tensor([prompt]), logits[None].clone())[0].softmax(-1)  # type: ignore[arg-type]
    drawn = [Sampler(sampling, seed, prompt).next(logits) for seed in range(3000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=40)
    assert not counts[expected == 0].any()
    torch.testing.assert_close(counts / 3000, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("nucleus", [1, 7])
def test_min_p_reaches_behind_the_first_look(nucleus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_engine.sampling.NUCLEUS", nucleus)
    logits, sampling = torch.zeros(8), Sampling(temperature=1.0, top_p=1.0, min_p=0.5)
    generator = torch.Generator().manual_seed(0)
    assert {sample(logits, sampling, generator) for _ in range(300)} == set(range(8))


def test_tokens_of_the_answer_are_penalized_from_when_they_came() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=3.0), 0, [0])
    logits = torch.tensor([5.0, 4.0, 3.0, -1.0])
    assert [sampler.next(logits) for _ in range(3)] == [1, 2, 0]


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -float("inf")])
    assert sample(logits, Sampling(temperature=1e-30), torch.Generator().manual_seed(0)) == 1


@pytest.mark.parametrize("damaged", [[1.0, float("nan")], [1.0, float("inf")], [-float("inf")] * 2])
def test_logits_without_a_finite_largest_are_an_error(damaged: list[float]) -> None:
    with pytest.raises(AwqError, match="no numbers"):
        sample(torch.tensor(damaged), Sampling(), torch.Generator())
