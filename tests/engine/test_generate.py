"""Text from a model: whole characters, the same for the same seed, an honest account at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded_checkpoint import demo_model, write_awq_folder

from awq_engine.errors import AwqError, BadInputError, UsageError
from awq_engine.generate import (
    Detokenizer,
    GenerationStats,
    Message,
    Sampling,
    encode_prompt,
    generate,
    sample,
    stop_tokens,
)
from awq_engine.runtime import LoadedModel, load_model, load_tokenizer

STORY = [{"role": "user", "content": "Tell me about a dog."}]
GREEDY = Sampling(max_tokens=24, temperature=0)
TOKENIZER = load_tokenizer(demo_model())


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(demo_model(), device="cpu")


def run(
    loaded: LoadedModel, messages: Sequence[Message] = STORY, sampling: Sampling = GREEDY
) -> tuple[list[str], GenerationStats]:
    *pieces, stats = generate(loaded, messages, sampling)
    assert isinstance(stats, GenerationStats)
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert len(texts) == len(pieces)
    return texts, stats


def test_greedy_text_is_that_of_transformers(demo: LoadedModel) -> None:
    """The cache, the chunks and the pieces change nothing against `model.generate`."""
    prompt = encode_prompt(demo, STORY)
    model: Any = demo.model
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
    whole = str(demo.tokenizer.decode(expected, skip_special_tokens=True))
    texts, stats = run(demo)
    assert whole.endswith("".join(texts))
    assert stats.new_tokens == len(expected) - len(prompt)


def test_a_prompt_in_chunks_gives_the_same_text(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(demo)
    monkeypatch.setattr("awq_engine.generate.PREFILL_CHUNK", 3)
    assert run(demo)[0] == whole


def test_the_quantized_model_speaks(tmp_path: Path) -> None:
    folder = write_awq_folder(demo_model(), tmp_path / "awq", group_size=64)
    texts, stats = run(load_model(folder, device="cpu"))
    assert "".join(texts).strip()
    assert stats.new_tokens == 24


def test_the_account_at_the_end(demo: LoadedModel) -> None:
    _, stats = run(demo)
    assert stats.prompt_tokens == len(encode_prompt(demo, STORY))
    assert stats.context_used == stats.prompt_tokens + stats.new_tokens
    assert (stats.context_length, stats.finish_reason, stats.used_template) == (512, "length", True)
    assert 0 < stats.seconds_to_first_token < stats.seconds
    assert stats.tokens_per_second == pytest.approx(23 / (stats.seconds - stats.seconds_to_first_token), rel=0.05)


def test_the_same_seed_gives_the_same_text(demo: LoadedModel) -> None:
    """A seed that was drawn is told, and reproduces its text."""
    sampling = Sampling(max_tokens=16, temperature=1.5, top_p=1.0)
    texts, stats = run(demo, sampling=sampling)
    assert run(demo, sampling=replace(sampling, seed=stats.seed))[0] == texts
    assert run(demo, sampling=replace(sampling, seed=stats.seed + 1))[0] != texts


def test_cancelling_keeps_the_text_so_far(demo: LoadedModel) -> None:
    pieces: list[str | GenerationStats] = []
    for piece in generate(demo, STORY, GREEDY, cancelled=lambda: len(pieces) >= 3):
        pieces.append(piece)
    stats = pieces[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.finish_reason == "cancelled"
    assert 3 <= stats.new_tokens < 24


def test_the_model_can_end_its_answer(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ending token is neither counted nor shown."""
    monkeypatch.setattr("awq_engine.generate._tokens", lambda *_: iter([300, 301, 2, 303]))
    _, stats = run(demo)
    assert 2 in stop_tokens(demo)
    assert (stats.new_tokens, stats.finish_reason) == (2, "stop")


def test_a_full_context_ends_the_answer(demo: LoadedModel) -> None:
    prompt = len(encode_prompt(demo, STORY))
    texts, stats = run(replace(demo, context_length=prompt + 5))
    assert texts
    assert (stats.new_tokens, stats.finish_reason) == (5, "context")


def test_a_conversation_that_does_not_fit_is_refused(demo: LoadedModel) -> None:
    with pytest.raises(BadInputError, match=r"has \d+ tokens, and the context of demo-model holds 512"):
        run(demo, [{"role": "user", "content": "word " * 600}])


def test_what_a_template_refuses_is_said(demo: LoadedModel) -> None:
    with pytest.raises(BadInputError, match=r"refuses this conversation.*not tool"):
        run(demo, [{"role": "tool", "content": "x"}])
    with pytest.raises(BadInputError, match="empty"):
        run(demo, [])


def test_without_a_template_the_text_is_continued(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.tokenizer, "chat_template", None)
    texts, stats = run(demo, [{"role": "user", "content": "Once upon a time"}])
    assert not stats.used_template
    assert "".join(texts).startswith((" ", ",", ".")), "the space after the prompt belongs to the answer"


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_pieces_are_whole_characters_and_lose_nothing(text: str) -> None:
    """Any text, emoji and combining marks included, comes out as it went in, never with half a character."""
    tokens = list(TOKENIZER.encode(text, add_special_tokens=False))
    expected = TOKENIZER.decode(tokens, skip_special_tokens=True)
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in tokens]
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert "".join(pieces) + detokenizer.flush() == expected


def test_half_a_character_at_the_end_is_dropped() -> None:
    tokens = list(TOKENIZER.encode("a🙂", add_special_tokens=False))
    assert len(tokens) > 2, "the tokenizer has no token for the whole character"
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(detokenizer.push(token) for token in tokens[:-1]) + detokenizer.flush()
    assert text.strip() == "a"


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
        monkeypatch.setattr("awq_engine.generate.NUCLEUS", nucleus)
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
        sample(torch.tensor([1.0, float("nan")]), GREEDY, torch.Generator())


@pytest.mark.parametrize(
    "given_settings",
    [{"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"seed": -1}],
)
def test_settings_that_make_no_sense_are_refused(given_settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(given_settings))):
        Sampling(**given_settings)  # pyright: ignore[reportArgumentType]
