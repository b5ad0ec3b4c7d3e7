"""The demo model's training script: conversations fit the grammar, the optimizer's pieces do what they say."""

import itertools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from awq_engine.builtin_text import DATA

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """The script's folder on the path, as when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import demo_conversations
    import train_demo_model

    yield demo_conversations, train_demo_model
    for name in ("demo_conversations", "train_demo_model"):
        sys.modules.pop(name)


def test_conversations_are_filled_in_and_repeatable(scripts):
    """No choice or slot of the grammar is left over, speakers take turns, and the seed decides everything."""
    conversations, _ = scripts
    story = "One day a fox named Red found a drum. " * 12
    talks = list(itertools.islice(conversations.Conversations([story], seed=1), 400))
    assert talks == list(itertools.islice(conversations.Conversations([story], seed=1), 400))
    for talk in talks:
        assert not re.search(r"[\[\]{}|¶]", " ".join(message["content"] for message in talk))
        roles = [message["role"] for message in talk if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert len({talk[-1]["content"] for talk in talks}) > 200


def test_conversation_ids_follow_the_chat_template(scripts):
    """Every conversation starts with the begin token and every reply ends with the end token."""
    _, training = scripts
    tokenizer = training.AutoTokenizer.from_pretrained(DATA / "demo-model")
    ids = training.conversation_ids(tokenizer, None, tokens=3000, seed=0)
    assert 3000 <= len(ids) < 4000
    assert ids[0] == tokenizer.bos_token_id
    text = tokenizer.decode(ids.tolist())
    assert text.count("Teller:\n") == text.count("</s>")


def test_orthogonal_brings_singular_values_near_one(scripts):
    """Whatever the gradient's scale and shape, the update's singular values lie around one."""
    _, training = scripts
    for shape in ((32, 96), (96, 32)):
        gradient = 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(training.orthogonal(gradient))
        assert 0.5 < values.min() < values.max() < 1.3


def test_rows_are_windows_of_the_sources(scripts):
    """A batch holds whole windows, each from one source, and sources come by their shares."""
    _, training = scripts
    low, high = np.arange(0, 1000, dtype=np.uint16), np.arange(2000, 4000, dtype=np.uint16)
    sources = [training.Source("low", 3.0, low), training.Source("high", 1.0, high)]
    rows = torch.cat(list(itertools.islice(training.batches(sources, rows=4, length=16, seed=0), 100)))
    assert rows.shape == (400, 17)
    assert torch.equal(rows - rows[:, :1], torch.arange(17).expand(400, 17))
    assert (rows[:, 0] < 1000).float().mean() == pytest.approx(0.75, abs=0.08)


def test_the_rate_rises_stays_and_falls(scripts):
    """Warm-up over forty steps, full rate until the fall begins, next to nothing at the end."""
    _, training = scripts
    assert training.rate_at(0, 0.0, 0.5) == pytest.approx(1 / 40)
    assert training.rate_at(100, 0.4, 0.5) == 1.0
    assert training.rate_at(100, 0.75, 0.5) == pytest.approx(0.5)
    assert training.rate_at(100, 0.999, 0.5) <= 0.011
    assert training.rate_at(100, 0.999, 1.0) == 1.0


@pytest.mark.slow
def test_a_short_run_learns_and_saves(scripts, tmp_path, monkeypatch, capsys):
    """A few steps on a repeating text lower its loss, and the result loads."""
    _, training = scripts
    ticks = itertools.count()  # a step takes a tenth of a second on any machine
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
    text = tmp_path / "text.txt"
    text.write_text("The grey cat sat on the blue mat and sang. " * 400, encoding="utf-8")
    out = tmp_path / "out"
    options = f"--start {DATA / 'demo-model'} --out {out} --text {text}=1 --held-out {text} --minutes 0.1 --rows 2"
    monkeypatch.setattr(
        sys,
        "argv",
        ["train_demo_model.py", *options.split(), "--length", "128", "--threads", str(torch.get_num_threads())],
    )
    assert training.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["after"]["text"] < result["before"]["text"] - 1
    training.LlamaForCausalLM.from_pretrained(out)
