"""Perplexity and KL divergence against values worked out another way."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from awq_engine import cli
from awq_engine.commands.console import result_json
from awq_engine.commands.evaluate import describe
from awq_engine.errors import BadInputError, UsageError
from awq_engine.evaluate import EvalResult, compare, evaluate, perplexity
from awq_engine.runtime import load_tokenizer
from tests.engine.rounded_checkpoint import demo_model, write_float_folder

SEQ_LEN = 64


@pytest.fixture(scope="module")
def found() -> EvalResult:
    return evaluate(demo_model(), against=demo_model(), seq_len=SEQ_LEN, max_tokens=4 * SEQ_LEN, device="cpu")


def test_kl_and_agreement_of_known_distributions() -> None:
    original = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    quantized = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    score = compare(quantized, original, torch.tensor([9, 0, 1]))
    assert score.kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)
    assert score.top1_agreement == 0.5
    assert score.nll == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert score.nll_original == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_model_against_itself_has_lost_nothing(found: EvalResult) -> None:
    assert found.kl == pytest.approx(0, abs=1e-7)
    assert found.top1_agreement == 1
    assert found.nll == found.nll_original
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert found.tokens == 4 * (SEQ_LEN - 1)


def test_nll_is_the_cross_entropy_of_transformers_own_model(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model())
    ids = tokenizer("Once there was a dog who did not like the rain at all. " * 20, add_special_tokens=False)[
        "input_ids"
    ]
    body = SEQ_LEN - 1
    (tmp_path / "a.txt").write_text(tokenizer.decode(ids[: 2 * body]))  # type: ignore[arg-type]
    found = evaluate(demo_model(), text=str(tmp_path / "a.txt"), seq_len=SEQ_LEN, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    text_ids = tokenizer((tmp_path / "a.txt").read_text(), add_special_tokens=False)["input_ids"]
    count = (len(text_ids) + 1) // body
    stream = [*text_ids, tokenizer.eos_token_id]
    starts = [number * len(stream) // count for number in range(count)]
    rows = torch.tensor([[tokenizer.bos_token_id, *stream[start : start + body]] for start in starts])
    with torch.no_grad():
        logits = model(rows).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.kl is None


def test_windows_give_a_standard_error_and_one_window_gives_none(found: EvalResult) -> None:
    assert found.nll_error is not None
    assert 0 < found.nll_error < found.nll
    single = evaluate(demo_model(), seq_len=SEQ_LEN, max_tokens=SEQ_LEN, device="cpu")
    assert single.nll_error is None


def test_json_has_the_promised_keys(found: EvalResult) -> None:
    data = found.to_json()
    assert {"nll", "perplexity", "tokens", "kl", "top1_agreement", "nll_original"} <= set(data)
    alone = evaluate(demo_model(), seq_len=SEQ_LEN, max_tokens=SEQ_LEN, device="cpu").to_json()
    assert {"nll", "perplexity", "tokens"} <= set(alone)
    assert not {"kl", "top1_agreement", "nll_original"} & set(alone)


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        demo_model(), seq_len=SEQ_LEN, max_tokens=3 * SEQ_LEN, device="cpu", on_progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("seq_len", [1, 513])
def test_length_the_model_cannot_take_is_a_usage_error(seq_len: int) -> None:
    with pytest.raises(UsageError, match="this model takes 2 to 512 tokens"):
        evaluate(demo_model(), seq_len=seq_len, device="cpu")


def test_text_shorter_than_a_window_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(BadInputError, match="tokens, but one sequence needs 64"):
        evaluate(demo_model(), text=str(tmp_path / "a.txt"), seq_len=SEQ_LEN, device="cpu")


def test_models_of_different_vocabularies_cannot_be_compared(tmp_path: Path) -> None:
    other = write_float_folder(tmp_path / "other", vocab_size=4096)
    with pytest.raises(BadInputError, match=r"a vocabulary of 2048 tokens and .* one of 4096"):
        evaluate(demo_model(), against=other, seq_len=SEQ_LEN, max_tokens=SEQ_LEN, device="cpu")


def test_perplexity_too_large_for_a_float_is_null_and_said(
    found: EvalResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perplexity(710) is None
    broken = dataclasses.replace(found, nll=710.0, perplexity=perplexity(710), perplexity_original=perplexity(710))
    assert "perplexity  too large" in describe(broken)
    assert "original    perplexity too large, nll" in describe(broken)
    result_json(broken.to_json())
    assert json.loads(capsys.readouterr().out)["perplexity"] is None


def test_what_is_not_a_number_never_reaches_json(capsys: pytest.CaptureFixture[str]) -> None:
    result_json({"nll": math.nan, "perplexity": [math.inf, 2.5]})
    assert json.loads(capsys.readouterr().out) == {"nll": None, "perplexity": [None, 2.5]}


@pytest.mark.parametrize("max_tokens", [0, -5])
def test_no_tokens_is_a_usage_error(max_tokens: int) -> None:
    with pytest.raises(UsageError, match=f"--max-tokens must be at least 1, not {max_tokens}"):
        evaluate(demo_model(), max_tokens=max_tokens, device="cpu")


def test_absent_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(demo_model()), "--text", "nosuch.txt"]) == 2
    assert "There is no text nosuch.txt; give builtin" in capsys.readouterr().err


def test_tokenizer_of_a_bigger_model_is_refused(tmp_path: Path) -> None:
    small = write_float_folder(tmp_path / "small", vocab_size=96)
    for file in demo_model().glob("tokenizer*"):
        shutil.copy(file, small)
    for model, against in ((small, None), (demo_model(), small)):
        with pytest.raises(BadInputError, match=r"makes token \d+, but its embedding has only 96 rows"):
            evaluate(model, against=against, seq_len=SEQ_LEN, max_tokens=SEQ_LEN, device="cpu")
