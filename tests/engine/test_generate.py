"""Text from a model: whole characters, the same for the same seed, an honest account at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounded_checkpoint import demo_model, write_awq_folder

from awq_engine.errors import BadInputError
from awq_engine.generate import GenerationStats, PromptProgress, generate
from awq_engine.prompts import Message, encode_prompt, stop_tokens
from awq_engine.runtime import LoadedModel, load_model
from awq_engine.sampling_settings import Sampling

STORY = [{"role": "user", "content": "Tell me about a dog."}]
GREEDY = Sampling(max_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(demo_model(), device="cpu")


def run(
    loaded: LoadedModel, messages: Sequence[Message] = STORY, sampling: Sampling = GREEDY
) -> tuple[list[str], GenerationStats]:
    """What was read for another test is forgotten first."""
    loaded.kept.clear()
    *pieces, stats = generate(loaded, messages, sampling)
    assert isinstance(stats, GenerationStats)
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert all(isinstance(piece, str | PromptProgress) for piece in pieces)
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


def test_reading_the_prompt_is_told(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0, after every chunk, up to all of it, before the first text."""
    monkeypatch.setattr("awq_engine.generate.PREFILL_CHUNK", 5)
    demo.kept.clear()
    found = list(generate(demo, STORY, replace(GREEDY, max_tokens=2)))
    told = [piece for piece in found if isinstance(piece, PromptProgress)]
    total = len(encode_prompt(demo, STORY))
    assert found[: len(told)] == told
    assert [piece.done for piece in told] == [*range(0, total, 5), total]
    assert {piece.total for piece in told} == {total}


def test_the_text_ends_before_a_stop_string(demo: LoadedModel) -> None:
    """Wherever it begins and however many tokens it takes, nothing of it or behind it is shown."""
    whole = "".join(run(demo)[0])
    for begin, length in [(0, 3), (11, 1), (17, 9), (5, 30)]:
        stop = whole[begin : begin + length]
        texts, stats = run(demo, sampling=replace(GREEDY, stop=("never there", stop)))
        assert "".join(texts) == whole[: whole.index(stop)]
        assert (stats.finish_reason, stats.new_tokens < 24) == ("stop", True)


def test_what_only_begins_like_a_stop_string_is_shown(demo: LoadedModel) -> None:
    whole = "".join(run(demo)[0])
    texts, stats = run(demo, sampling=replace(GREEDY, stop=(whole[-4:] + "nothing",)))
    assert ("".join(texts), stats.finish_reason) == (whole, "length")


def test_a_special_token_can_be_a_stop_string(demo: LoadedModel) -> None:
    assert stop_tokens(demo, ["<s>", "word"]) == {1, 2}


def test_the_repetition_penalty_counts_what_the_model_wrote(demo: LoadedModel) -> None:
    """So high that no token comes twice."""
    prompt = encode_prompt(demo, STORY)
    made: list[int] = []
    decode = demo.tokenizer.decode
    texts, stats = run(demo, sampling=replace(GREEDY, repetition_penalty=10.0))
    made = list(demo.tokenizer.encode("".join(texts), add_special_tokens=False))
    assert len(set(made)) == len(made) == stats.new_tokens, decode(made)
    assert not set(made) & set(prompt)


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
    pieces: list[PromptProgress | str | GenerationStats] = []
    for piece in generate(demo, STORY, GREEDY, cancelled=lambda: sum(isinstance(p, str) for p in pieces) >= 3):
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
