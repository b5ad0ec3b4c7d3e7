"""The model writes its own calibration text: its own tokens, in its own template, the same for one seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from awq_engine import self_text
from awq_engine.errors import ResourceError, UsageError
from awq_engine.runtime import load_model, load_tokenizer
from awq_engine.self_text import write_windows
from tests.engine.rounded_checkpoint import demo_model


@pytest.fixture(scope="module")
def written() -> torch.Tensor:
    return write_windows(demo_model(), "cpu", samples=4, seq_len=96, seed=0)


def test_one_seed_gives_the_same_tokens(written: torch.Tensor) -> None:
    assert written.shape == (4, 96)
    assert written.equal(write_windows(demo_model(), "cpu", 4, 96, seed=0))
    assert not written.equal(write_windows(demo_model(), "cpu", 4, 96, seed=1))


def test_every_other_sequence_answers_a_question_in_the_models_template(written: torch.Tensor) -> None:
    tokenizer: Any = load_tokenizer(demo_model())
    assert (written[:, 0] == tokenizer.bos_token_id).all()
    texts = [tokenizer.decode(row) for row in written.tolist()]
    assert [text.startswith("<s>User: ") and "\nTeller:\n" in text for text in texts] == [False, True] * 2


def test_after_the_end_of_a_text_another_begins(written: torch.Tensor) -> None:
    tokenizer: Any = load_tokenizer(demo_model())
    ends = (written[:, :-1] == tokenizer.eos_token_id).nonzero()
    assert len(ends)
    assert all(written[row, at + 1] == tokenizer.bos_token_id for row, at in ends.tolist())


def test_text_is_likely_under_the_model(written: torch.Tensor) -> None:
    """Sampled at temperature 1, its loss is the model's own entropy: far below that of random tokens."""
    model = load_model(demo_model(), device="cpu").model
    with torch.inference_mode():
        logits = model(written).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), written[:, 1:].flatten())
    assert loss < 4.5 < torch.tensor(logits.shape[-1]).log()


def test_model_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_text, "host_memory", lambda: (10**7, 10**6))
    with pytest.raises(ResourceError, match=r"whole model must be in memory: 14\.\d MB, and 1\.0 MB may be used"):
        write_windows(demo_model(), "cpu", 1, 8, 0)
    with pytest.raises(ResourceError, match=r"and 2\.0 MB may be used"):
        write_windows(demo_model(), "cpu", 1, 8, 0, max_memory=2 * 10**6)


def test_tokenizer_without_a_first_token_is_refused() -> None:
    class Nothing:
        bos_token_id = eos_token_id = None

    with pytest.raises(UsageError, match="no token that begins a text; use --calibration builtin"):
        self_text._starts(Nothing(), 8)


def test_prompts_longer_than_a_sequence_are_not_used() -> None:
    tokenizer: Any = load_tokenizer(demo_model())
    assert self_text._starts(tokenizer, 4) == [[tokenizer.bos_token_id]]


def test_without_a_chat_template_sequences_only_begin_texts() -> None:
    tokenizer: Any = load_tokenizer(demo_model())
    tokenizer.chat_template = None
    assert self_text._starts(tokenizer, 512) == [[tokenizer.bos_token_id]]
