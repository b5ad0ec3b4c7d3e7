"""Scores of an answer: transformers' own probabilities, and a divergence that is what it says."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded_checkpoint import demo_model, write_awq_folder

from awq_engine.errors import BadInputError
from awq_engine.generate import PromptProgress, generate
from awq_engine.prompts import encode_answer, encode_prompt
from awq_engine.runtime import LoadedModel, load_model
from awq_engine.sampling_settings import Sampling
from awq_engine.score import ScoreStats, score
from awq_engine.token_scores import TOP, TokenScore, divergence

STORY = [{"role": "user", "content": "Tell me about a dog."}]
ANSWER = "Once upon a time there was a big dog. His name was Zörk 🙂 and he liked to run in the park. " * 2


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(demo_model(), device="cpu")


def run(loaded: LoadedModel, answer: str = ANSWER) -> tuple[list[TokenScore], ScoreStats]:
    *parts, stats = score(loaded, STORY, answer)
    assert isinstance(stats, ScoreStats)
    return [token for part in parts if isinstance(part, list) for token in part], stats


def test_scores_are_the_probabilities_of_one_forward_pass(demo: LoadedModel) -> None:
    """Chunks and the cache change nothing; log-probability, rank, top and rest belong to the right place."""
    prompt = encode_prompt(demo, STORY)
    answer = encode_answer(demo, STORY, prompt, ANSWER)
    assert len(answer) > 40, "more than one chunk"
    model: Any = demo.model
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1)
    found, stats = run(demo)
    assert [token.id for token in found] == answer
    assert (stats.prompt_tokens, stats.scored_tokens, stats.finish_reason) == (len(prompt), len(answer), "complete")
    for token, row in zip(found, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.rank == 1 + int((row > row[token.id]).sum())
        assert len(token.top) == TOP
        assert [row[number].item() for number, _ in token.top] == pytest.approx([p for _, p in token.top], abs=1e-4)
        assert token.rest + sum(math.exp(p) for _, p in token.top) == pytest.approx(1, abs=1e-9)
    assert "".join(token.text for token in found) == ANSWER


def test_the_likeliest_answer_has_rank_one(demo: LoadedModel) -> None:
    """What the model itself says greedily it also finds likeliest, token by token."""
    pieces = generate(demo, STORY, Sampling(max_tokens=20, temperature=0))
    answer = "".join(piece for piece in pieces if isinstance(piece, str))
    found, _ = run(demo, answer)
    assert {token.rank for token in found} == {1}
    assert {token.logprob for token in found} == {token.top[0][1] for token in found}


def test_a_model_does_not_diverge_from_itself_but_a_quantized_one_does(demo: LoadedModel, tmp_path: Path) -> None:
    quantized = load_model(write_awq_folder(demo_model(), tmp_path / "awq", group_size=64), device="cpu")
    original, rounded = run(demo)[0], run(quantized)[0]
    assert {divergence(token, token) for token in original} == {0.0}
    assert [token.id for token in rounded] == [token.id for token in original]
    assert sum(divergence(p, q) for p, q in zip(original, rounded, strict=True)) / len(original) > 1e-4


def test_answers_that_cannot_be_scored_are_refused(demo: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="the answer is empty"):
        run(demo, "")
    with pytest.raises(BadInputError, match=r"have \d+ tokens, and the context of demo-model holds 512"):
        run(demo, "word " * 600)


def test_scoring_can_be_cancelled(demo: LoadedModel) -> None:
    parts: list[Any] = []
    for part in score(demo, STORY, ANSWER, cancelled=lambda: any(isinstance(part, list) for part in parts)):
        parts.append(part)
    assert isinstance(parts[0], PromptProgress)
    assert (parts[-1].finish_reason, parts[-1].scored_tokens) == ("cancelled", 1)


def test_a_score_survives_json(demo: LoadedModel) -> None:
    token = run(demo, "dog")[0][0]
    assert TokenScore.from_json({**asdict(token), "top": [list(pair) for pair in token.top]}) == token


def told(probabilities: list[float], top: int) -> TokenScore:
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    kept = tuple((token, math.log(probabilities[token])) for token in order[:top])
    return TokenScore(0, "", 0.0, 1, "", kept, sum(probabilities[token] for token in order[top:]))


@settings(max_examples=200)
@given(st.data(), st.integers(2, 12), st.integers(1, 12))
def test_divergence_is_a_lower_bound_and_exact_when_the_top_is_everything(
    data: st.DataObject, n: int, top: int
) -> None:
    shares = st.lists(st.floats(1e-6, 1.0), min_size=n, max_size=n)
    p, q = ([x / sum(found) for x in found] for found in (data.draw(shares), data.draw(shares)))
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = divergence(told(p, top), told(q, top))
    assert 0 <= found <= max(0.0, exact) + 1e-9
    if top >= n:
        assert found == pytest.approx(max(0.0, exact), abs=1e-9)


def test_tokens_without_probability_stay_finite() -> None:
    sure, other = told([1.0, 1e-300], 2), told([1e-300, 1.0], 2)
    assert math.isfinite(divergence(sure, other))
    assert divergence(replace(sure, rest=0.0), replace(other, top=(), rest=0.0)) > 100
