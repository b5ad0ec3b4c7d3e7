"""The next token: in the nucleus, by the probabilities, the same for the same seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from awq_engine.errors import AwqError, UsageError
from awq_engine.sampling import DrawState, Sampler, draw
from awq_engine.sampling_settings import Sampling


def drawn(logits: torch.Tensor, sampling: Sampling, count: int, seed: int = 0) -> list[int]:
    """So many tokens of one text, always of the same logits."""
    sampler = Sampler(sampling, seed)
    return [sampler.next(logits) for _ in range(count)]


def test_sampling_stays_in_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.05, 0.6, 0.3, 0.05]))
    assert set(drawn(logits, Sampling(temperature=1.0, top_p=0.8), 200)) == {1, 2}
    assert set(drawn(logits, Sampling(temperature=1.0, top_p=0.01), 20)) == {1}
    for nearly in (0, 5e-324, 1e-60, 1e-3):
        assert set(drawn(logits, Sampling(temperature=nearly), 20)) == {1}


def test_a_nucleus_wider_than_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens are looked at first; when they do not reach top_p, all are."""
    logits, sampling = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.35, 0.05])), Sampling(temperature=1.0, top_p=0.9)
    draws = []
    for nucleus in (1, 5):
        monkeypatch.setattr("awq_engine.sampling.NUCLEUS", nucleus)
        draws.append(drawn(logits, sampling, 200))
    assert draws[0] == draws[1]
    assert set(draws[0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1.0, 0.9999])
@pytest.mark.parametrize("texts", [1, 3000], ids=["one-text", "many-seeds"])
def test_sampling_follows_the_probabilities(top_p: float, texts: int) -> None:
    logits, sampling = torch.log(torch.tensor([0.1, 0.6, 0.3])), Sampling(temperature=1.0, top_p=top_p)
    tokens = [token for seed in range(texts) for token in drawn(logits, sampling, 3000 // texts, seed)]
    assert torch.bincount(torch.tensor(tokens)).div(3000).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.04)


def test_tokens_of_a_text_have_nothing_to_do_with_each_other() -> None:
    """All pairs of neighbours are as frequent, within a text and between texts of seeds next to each other."""
    sampling, logits = Sampling(temperature=1.0, top_p=1.0), torch.zeros(4)
    texts = torch.tensor([drawn(logits, sampling, 100, seed) for seed in range(60)])
    for first, second in ((texts[:, :-1], texts[:, 1:]), (texts[:-1], texts[1:]), (texts[:-1, 1:], texts[1:, :-1])):
        counts = torch.bincount((4 * first + second).flatten(), minlength=16).double()
        expected = counts.sum() / 16
        assert float(((counts - expected) ** 2 / expected).sum()) < 45, "chi-square, 15 degrees of freedom, p = 1e-4"


def test_chance_is_a_function_of_seed_place_and_token() -> None:
    """SplitMix64 written down anew in Python's integers."""

    def scrambled(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
        return x ^ x >> 31

    def waits(seed: int, place: int, token: int) -> float:
        bits = scrambled((scrambled((scrambled(seed) + place) % 2**64) + token * 0x9E3779B97F4A7C15) % 2**64)
        return -math.log(((bits >> 12) + 0.5) / 2**52)

    found = drawn(torch.zeros(300), Sampling(temperature=1.0, top_p=1.0), 20, seed=2**63 - 1)
    assert found == [min(range(300), key=lambda token, n=n: waits(2**63 - 1, n, token)) for n in range(20)]


def test_logits_a_little_different_rarely_change_a_draw() -> None:
    """As they are where a text was read in other pieces: no more often than the probabilities' difference explains."""
    logits = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(3))
    other = logits + 0.03 * torch.randn(1000, generator=torch.Generator().manual_seed(4))
    apart = float((logits.softmax(0) - other.softmax(0)).abs().sum())
    for sampling in (Sampling(temperature=1.0, top_p=1.0), Sampling(temperature=1.0, top_p=0.9)):
        ours, theirs = (torch.tensor(drawn(which, sampling, 2000)) for which in (logits, other))
        assert float((ours != theirs).double().mean()) < 1.5 * apart < 0.05


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0, repetition_penalty=1.2),
        Sampling(temperature=1.0, top_p=1.0),
        Sampling(top_k=40, min_p=0.1),
    ],
    ids=str,
)
def test_a_draw_on_a_gpu_never_waits_for_the_host(sampling: Sampling) -> None:
    """On a device that has shapes but no numbers, whatever asks for one fails."""
    with FakeTensorMode():
        logits = torch.empty(5000, device="cuda")
        seen = torch.empty(5000, dtype=torch.bool, device="cuda")
        token = draw(logits, sampling, DrawState(torch.empty(1, dtype=torch.long, device="cuda"), seen))
    assert (token.shape, token.dtype, token.device.type) == ((1,), torch.int64, "cuda")


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(AwqError, match="NaN"):
        drawn(torch.tensor([1.0, float("nan")]), Sampling(temperature=0), 1)


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
        {"repetition_penalty": 0.001},
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
    tokens = [Sampler(sampling, seed, prompt).next(logits) for seed in range(3000)]
    counts = torch.bincount(torch.tensor(tokens), minlength=40)
    assert not counts[expected == 0].any()
    torch.testing.assert_close(counts / 3000, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("nucleus", [1, 7])
def test_min_p_reaches_behind_the_first_look(nucleus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_engine.sampling.NUCLEUS", nucleus)
    logits, sampling = torch.zeros(8), Sampling(temperature=1.0, top_p=1.0, min_p=0.5)
    assert set(drawn(logits, sampling, 300)) == set(range(8))


def test_tokens_of_the_answer_are_penalized_from_when_they_came() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=3.0), 0, [0])
    logits = torch.tensor([5.0, 4.0, 3.0, -1.0])
    assert [sampler.next(logits) for _ in range(3)] == [1, 2, 0]


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -float("inf")])
    assert set(drawn(logits, Sampling(temperature=1e-30), 20)) == {1}


@pytest.mark.parametrize("damaged", [[1.0, float("nan")], [1.0, float("inf")], [-float("inf")] * 2])
def test_logits_without_a_finite_largest_are_an_error(damaged: list[float]) -> None:
    with pytest.raises(AwqError, match="no numbers"):
        drawn(torch.tensor(damaged), Sampling(), 1)
