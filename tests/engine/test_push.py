"""What goes to the Hub is what was shown, and only after somebody agreed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, fake_hub, run_python
from rounded_checkpoint import write_awq_folder, write_float_folder

from awq_engine.cli import main
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError, UsageError
from awq_engine.evaluations import store_evaluation
from awq_engine.push import plan_push
from awq_engine.runs import create_run


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    folder = write_awq_folder(write_float_folder(tmp_path / "float"), tmp_path / "awq")
    (folder / "README.md").write_text("# Tiny\n\n```\nvllm serve FOLDER --tensor-parallel-size 1\n```\n")
    return folder


def push_command(model: Path, hub: FakeHub, *words: str, token: str = "hf_secret", repo: str = "org/new"):
    command = ["push", str(model), repo, *words]
    code = f"import sys; from awq_engine.cli import main; sys.exit(main({command!r}))"
    return run_python(code, hub.url, model.parent / "client", **({"HF_TOKEN": token} if token else {}))


def test_only_the_models_own_files_go(model: Path):
    (model / "link.json").symlink_to(model / "config.json")
    (model / "modeling_evil.py").write_text("boom")
    (model / "weights.bin").write_bytes(b"pickle")
    plan = plan_push(model, "org/new", private=True)
    assert plan.left_out == ("link.json", "modeling_evil.py", "weights.bin")
    assert {"README.md", "config.json", "model.safetensors"} <= set(plan.files)
    assert plan.files["model.safetensors"] == (model / "model.safetensors").stat().st_size


def test_the_card_names_the_repository_and_what_was_measured(model: Path):
    run = create_run(RunConfig(str(model.parent / "float"), str(model)))
    found = {
        "text": "/home/me/notes.txt (a sample)", "tokens": 1000, "seq_len": 512, "perplexity": 10.5,
        "perplexity_original": 10.25, "kl": 0.0123, "kl_error": 0.001, "top1_agreement": 0.925,
    }  # fmt: skip
    store_evaluation(run, {}, found)
    plan = plan_push(model, "org/new", private=True)
    assert "vllm serve org/new --tensor-parallel-size 1" in plan.card
    assert "on 1000 tokens of notes.txt in windows of 512" in plan.card
    assert "| KL divergence from the original, nats per token | 0.01230 ± 0.00100 |" in plan.card
    assert "| same most likely token | 92.5% |" in plan.card
    assert "/home/me" not in plan.card
    assert plan.files["README.md"] == len(plan.card.encode())
    assert "Measured" not in (model / "README.md").read_text()


def test_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path):
    (tmp_path / "secret.json").write_text("{}")
    (model / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BadInputError, match="outside of the model's folder"):
        plan_push(model, "org/new", private=True)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "org/na me", "../x", ""])
def test_a_name_that_is_none_is_refused(repo: str, model: Path):
    with pytest.raises(UsageError, match="write it as org/name"):
        plan_push(model, repo, private=True)


def test_a_model_in_floats_is_refused(model: Path):
    with pytest.raises(BadInputError, match="is not quantized"):
        plan_push(model.parent / "float", "org/new", private=True)


def test_a_dry_run_sends_nothing(model: Path):
    with fake_hub({}) as hub:
        done = push_command(model, hub, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        assert not hub.requests
    files = json.loads(done.stdout)["files"]
    assert sorted(files) == sorted(path.name for path in model.iterdir())


def test_what_was_shown_is_what_arrives(model: Path):
    with fake_hub({}) as hub:
        done = push_command(model, hub, "--yes", "--json")
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert {name: len(content) for name, content in hub.pushed.items()} == shown["files"]
        assert hub.pushed["model.safetensors"] == (model / "model.safetensors").read_bytes()
        assert hub.created[0]["visibility"] == "private"
    assert "hf_secret" not in done.stdout + done.stderr


def test_nobody_there_to_agree_is_no_agreement(model: Path):
    with fake_hub({}) as hub:
        done = push_command(model, hub)
        assert done.returncode == 2
        assert "Nothing was sent" in done.stderr
        assert not hub.requests


def test_refusals_are_sentences(model: Path):
    with fake_hub({}) as hub:
        done = push_command(model, hub, "--yes", token="")
        assert (done.returncode, "Nobody is logged in" in done.stderr) == (4, True)
        done = push_command(model, hub, "--yes", repo="forbidden/new")
        assert (done.returncode, "does not let this login use" in done.stderr) == (4, True)
    assert "Traceback" not in done.stderr


def test_the_answer_no_sends_nothing(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    class Person:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return "no\n"

    monkeypatch.setattr(sys, "stdin", Person())
    assert main(["push", str(model), "org/new"]) == 2
    assert "Send this to org/new?" in capsys.readouterr().err
