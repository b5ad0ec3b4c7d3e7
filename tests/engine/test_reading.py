"""A conversation is read where it differs from what was read last, and answered as if it had been read as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rounded_checkpoint import demo_model, write_awq_folder
from tiny_model import TINY, write_tiny_model

from awq_engine.decoding import open_decoder, prepare_decoding
from awq_engine.generate import GenerationStats, PromptProgress, generate
from awq_engine.prompts import Message, encode_prompt
from awq_engine.reading import Reader
from awq_engine.runtime import LoadedModel, load_model
from awq_engine.sampling_settings import Sampling
from awq_engine.score import score

GREEDY = Sampling(max_tokens=16, temperature=0)
LIVELY = Sampling(max_tokens=16, temperature=1.2, top_p=1.0, seed=7)
THOUGHTFUL = (
    "{% for m in messages %}<s>{{ m['role'] }}: {% if loop.last %}{{ m['content'] }}"
    "{% else %}{{ m['content'].split('dog')[-1] }}{% endif %}\n{% endfor %}<s>assistant: "
)
"""Leaves out of earlier turns what came before their last `dog`, as templates of thinking models do with thoughts."""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def reply(loaded: LoadedModel, messages: list[Message], sampling: Sampling = GREEDY) -> tuple[str, GenerationStats]:
    *pieces, stats = generate(loaded, messages, sampling)
    assert isinstance(stats, GenerationStats)
    return "".join(piece for piece in pieces if isinstance(piece, str)), stats


def conversation(loaded: LoadedModel, sampling: Sampling) -> Iterator[list[Message]]:
    """Requests as a person makes them: turns, a reply asked for again, a question edited, another conversation."""
    talk = [user("Tell me about a dog.")]
    for question in ("And the cat?", "Why did the dog run to the red house?"):
        yield talk
        talk = [*talk, assistant(reply(loaded, talk, sampling)[0]), user(question)]
    yield talk
    yield talk
    yield [*talk[:2], user("And the bird?")]
    yield [{"role": "system", "content": "Be kind."}, *talk]
    yield talk[:1]


@pytest.fixture(scope="module", params=["floats", "quantized", "transformers"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    if request.param != "quantized":
        floats = load_model(demo_model(), device="cpu")
        return floats if request.param == "transformers" else prepare_decoding(floats)
    folder = write_awq_folder(demo_model(), tmp_path_factory.mktemp("awq") / "model", group_size=64)
    return prepare_decoding(load_model(folder, device="cpu"))


def test_replies_are_those_of_a_fresh_reading(loaded: LoadedModel) -> None:
    """Drawn at random only in floats: activations rounded to 16 bits can let a draw fall differently."""
    sampling = GREEDY if loaded.quantized else LIVELY
    known = []
    for messages in conversation(replace(loaded), sampling):
        text, stats = reply(loaded, messages, sampling)
        fresh, all_read = reply(replace(loaded), messages, sampling)
        assert (text, stats.prompt_tokens) == (fresh, all_read.prompt_tokens)
        assert all_read.known_tokens == 0
        known.append(stats.known_tokens / stats.prompt_tokens)
    _, second, third, again, edited, other, _ = known
    assert min(second, third, edited) > 0.5
    assert again == 1
    assert other < 0.2


def test_a_template_that_leaves_thoughts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt does not go on from what the model wrote: known is what comes before that, and the reply is right."""
    loaded = prepare_decoding(load_model(demo_model(), device="cpu"))
    monkeypatch.setattr(loaded.tokenizer, "chat_template", THOUGHTFUL)
    first = [user("A cat, a bird and a fish?")]
    thought = reply(loaded, first)[0] + " a dog. It ran."
    second = [*first, assistant(thought), user("Where?")]
    text, stats = reply(loaded, second)
    fresh = prepare_decoding(load_model(demo_model(), device="cpu"))
    monkeypatch.setattr(fresh.tokenizer, "chat_template", THOUGHTFUL)
    assert text == reply(fresh, second)[0]
    assert 0 < stats.known_tokens < len(encode_prompt(loaded, first)) + 8


def test_the_same_request_has_the_same_logits(tmp_path: Path) -> None:
    """Those after the prompt are remembered: read alone, its last token would be rounded in another way."""
    folder = write_awq_folder(demo_model(), tmp_path / "awq", group_size=64)
    loaded = prepare_decoding(load_model(folder, device="cpu"))
    prompt = encode_prompt(loaded, [user("Tell me about a dog.")])
    reader = Reader(lambda: open_decoder(loaded))
    logits = reader.read(prompt)[-1]
    reader.mark(logits)
    reader.read([5])
    reader.read([6])
    known, again = reader.begin(prompt)
    assert known == len(prompt)
    assert again is not None
    assert torch.equal(again, logits)
    assert reader.begin([*prompt, 5, 6]) == (len(prompt), None), "what was taken back is read again"
    assert reader.begin(prompt[:-2]) == (len(prompt) - 3, None)
    assert reader.begin(prompt) == (len(prompt) - 3, None), "the mark went with its token"


def test_the_same_seed_twice_in_a_row(loaded: LoadedModel) -> None:
    """Also where activations are rounded to 16 bits."""
    messages = [user("Tell me about a dog."), assistant("The dog ran."), user("Where did it run?")]
    first = reply(loaded, messages, LIVELY)[0]
    assert [reply(loaded, messages, LIVELY)[0] for _ in range(3)] == [first] * 3


def test_a_score_after_an_answer_reads_the_answer_only(loaded: LoadedModel) -> None:
    messages = [user("Tell me about a dog.")]
    answer, stats = reply(loaded, messages)
    found, fresh = (list(score(which, messages, answer)) for which in (loaded, replace(loaded)))
    assert found[0] == PromptProgress(stats.prompt_tokens, stats.prompt_tokens)
    for mine, theirs in zip(found[1:-1], fresh[-len(found) + 1 : -1], strict=True):
        assert isinstance(mine, list)
        assert isinstance(theirs, list)
        assert [token.id for token in mine] == [token.id for token in theirs]
        assert [token.logprob for token in mine] == pytest.approx([token.logprob for token in theirs], abs=1e-2)
    assert reply(loaded, messages)[0] == answer


def test_a_second_request_while_the_first_is_unfinished(loaded: LoadedModel) -> None:
    """Neither disturbs the other."""
    one, other = [user("Tell me about a dog.")], [user("Tell me about a cat.")]
    expected = reply(replace(loaded), one)[0]
    pieces = generate(loaded, one, GREEDY)
    begun = [next(pieces) for _ in range(4)]
    assert reply(loaded, other)[0] == reply(replace(loaded), other)[0]
    rest = [*begun, *pieces]
    assert "".join(piece for piece in rest if isinstance(piece, str)) == expected


def test_an_answer_that_was_left_or_broke_off(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known to be right is not used."""
    messages = [user("Tell me about a dog.")]
    expected = reply(replace(loaded), messages)[0]
    pieces = generate(loaded, messages, GREEDY)
    for _ in range(5):
        next(pieces)
    pieces.close()
    text, stats = reply(loaded, messages)
    assert (text, stats.known_tokens) == (expected, stats.prompt_tokens)
    decoder: Any = loaded.kept[0]._decoder
    monkeypatch.setattr(decoder, "read", _broken(decoder.read))
    with pytest.raises(MemoryError):
        reply(loaded, messages)
    assert not loaded.kept
    text, stats = reply(loaded, messages)
    assert (text, stats.known_tokens) == (expected, 0)


def _broken(read: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Out of memory when all is half done."""

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        read(*arguments, **options)
        raise MemoryError

    return broken


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("MistralConfig", {"sliding_window": 9}),
        ("Qwen3NextConfig", {"head_dim": 16, "num_experts": 0, "layer_types": ["linear_attention", "full_attention"]}),
    ],
)
def test_caches_that_cannot_go_back(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Windows that left tokens behind and recurrent states: known where the text only goes on, read anew elsewhere."""
    loaded = load_model(
        write_tiny_model(tmp_path / "m", getattr(transformers, name)(**{**TINY, **changes})), device="cpu"
    )
    reader = Reader(lambda: open_decoder(loaded))
    text = list(range(5, 45))
    reader.read(text[:30])
    assert reader.begin(text)[0] == 30
    on = reader.read(text[30:])
    assert reader.begin(text[:20])[0] == 0
    reader.read(text[:20])
    torch.testing.assert_close(reader.read(text[20:]), on, rtol=0, atol=1e-4)
