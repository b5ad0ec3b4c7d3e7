"""A model's own Python code: shown, asked for, run only as it was shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from awq_engine.checkpoint import read_checkpoint
from awq_engine.cli import main
from awq_engine.errors import BadInputError
from awq_engine.own_code import allow, is_trusted, own_code
from awq_engine.push import plan_push
from awq_engine.runtime import load_model
from awq_engine.skeleton import load_config
from tests.engine.fake_hub import COMMIT, fake_hub, run_python

CONFIGURATION = """
import os, pathlib
from transformers import LlamaConfig

pathlib.Path(os.environ["MARK"]).touch()

class BrandNewConfig(LlamaConfig):
    model_type = "brand-new"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_new import BrandNewConfig

class BrandNewForCausalLM(LlamaForCausalLM):
    config_class = BrandNewConfig
"""
CLASSES = {"AutoConfig": "configuration_new.BrandNewConfig", "AutoModelForCausalLM": "modeling_new.BrandNewForCausalLM"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies code to before it is imported: one folder for a process."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", folder)
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the code makes when it is run."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


@pytest.fixture
def model(tmp_path: Path, mark: Path) -> Path:
    """Of a type that transformers does not know; its name is its own, as imported modules are kept by it."""
    folder = write_tiny_model(tmp_path / f"model_of_{tmp_path.name}")
    write_config(folder, model_type="brand-new", architectures=["BrandNewForCausalLM"], auto_map=CLASSES)
    (folder / "configuration_new.py").write_text(CONFIGURATION)
    (folder / "modeling_new.py").write_text(MODELING)
    return folder


def write_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        load_config(read_checkpoint(folder))
    return str(caught.value)


def test_it_is_refused_with_the_command_that_shows_it(model: Path, mark: Path) -> None:
    said = refusal(model)
    assert "its own Python code (configuration_new.py, modeling_new.py) for the type 'brand-new'" in said
    assert said.endswith(f"`awq-tui trust {model}` shows it and asks.")
    assert not mark.exists()


def test_what_is_refused_has_the_name_of_its_repository_and_commit(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    said = refusal(snapshot)
    assert "modeling_new.py of org/name at commit abc123) " in said
    assert "`awq-tui trust org/name@abc123`" in said


def test_consent_names_every_file_and_holds_for_its_bytes(model: Path, mark: Path, capsys: Capture) -> None:
    assert main(["trust", str(model)]) == 2
    shown = capsys.readouterr().err
    code = own_code(model)
    for name, digest in code.files.items():
        assert f"{name}  " in shown
        assert digest in shown
    assert f"add --allow {code.digest}" in shown
    assert main(["trust", str(model), "--allow", "0" * 64]) == 2
    assert main(["trust", str(model), "--allow", code.digest[:4]]) == 2
    assert not is_trusted(model)
    assert not mark.exists()

    capsys.readouterr()
    assert main(["trust", str(model), "--allow", code.digest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "repository": "", "commit": "", "files": code.files, "digest": code.digest, "allowed": True
    }  # fmt: skip
    assert load_config(read_checkpoint(model)).model_type == "brand-new"
    assert mark.exists()
    (model / "modeling_new.py").write_text(f"{MODELING}# another line\n")
    assert "is not run unasked" in refusal(model)
    (model / "modeling_new.py").write_text(MODELING)
    (model / "another.py").touch()
    assert "is not run unasked" in refusal(model)


def test_consent_can_be_withdrawn(model: Path, capsys: Capture) -> None:
    allow(own_code(model))
    assert main(["trust", str(model), "--withdraw"]) == 0
    assert "not allowed any more" in capsys.readouterr().err
    assert "is not run unasked" in refusal(model)


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_a_person_is_asked(model: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    person, ours = os.openpty()
    os.write(person, answer.encode())
    with os.fdopen(ours) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert main(["trust", str(model)]) == (0 if answer == "y\n" else 2)
    os.close(person)
    assert is_trusted(model) == (answer == "y\n")


def test_code_of_another_repository_is_never_run(model: Path) -> None:
    write_config(model, auto_map={**CLASSES, "AutoModelForCausalLM": "org/other--modeling_new.BrandNewForCausalLM"})
    allow(own_code(model))
    assert "from elsewhere than its own folder (org/other--modeling_new.BrandNewForCausalLM)" in refusal(model)
    assert main(["trust", str(model)]) == 2


def test_code_in_folders_of_the_folder_is_never_run(model: Path, mark: Path) -> None:
    """transformers takes a `generate` of the model's own from there as soon as any of its code is trusted."""
    allow(own_code(model))
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(
        "import os, pathlib\npathlib.Path(os.environ['MARK']).touch()\n"
    )
    with pytest.raises(BadInputError, match=r"never run.*"):
        load_model(model, device="cpu")
    assert not mark.exists()
    assert not is_trusted(model)
    assert main(["trust", str(model)]) == 2


def test_where_transformers_knows_the_type_its_own_class_is_taken(model: Path, mark: Path) -> None:
    write_config(model, model_type="llama", architectures=["LlamaForCausalLM"])
    allow(own_code(model))
    load_model(model, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("spoiled", ["", "[]", "{", "[" * 100_000])
def test_a_list_that_cannot_be_read_allows_nothing(model: Path, tmp_path: Path, spoiled: str) -> None:
    allow(own_code(model))
    (tmp_path / "home" / "trusted_code.json").write_text(spoiled)
    assert not is_trusted(model)
    allow(own_code(model))
    assert is_trusted(model)


def test_a_folder_without_code_has_nothing_to_allow(tmp_path: Path, mark: Path, capsys: Capture) -> None:
    assert main(["trust", str(write_tiny_model(tmp_path / "plain"))]) == 2
    assert "has no Python code" in capsys.readouterr().err


def test_an_allowed_model_is_quantized_with_its_code_and_talks(model: Path, tmp_path: Path, capsys: Capture) -> None:
    allow(own_code(model))
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the rain. " * 100)
    asked = ["--group-size", "32", "--preset", "fast", "--samples", "4", "--seq-len", "64", "--device", "cpu"]
    output = tmp_path / f"{model.name}-AWQ"
    assert main(["quantize", str(model), "-o", str(output), "--calibration", str(tmp_path / "text.txt"), *asked]) == 0
    assert own_code(output) == own_code(model)
    assert {"configuration_new.py", "modeling_new.py"} <= set(plan_push(output, "org/new", private=True).files)
    capsys.readouterr()
    assert main(["chat", str(output), "--prompt", "Hello", "--max-tokens", "3", "--device", "cpu"]) == 0


def test_of_a_repository_the_code_alone_is_fetched_to_be_shown(tmp_path: Path) -> None:
    files = {"config.json": json.dumps({"auto_map": CLASSES}).encode(), "model.safetensors": b"x" * 100,
             "modeling_new.py": MODELING.encode(), "configuration_new.py": CONFIGURATION.encode()}  # fmt: skip
    with fake_hub(files) as hub:
        command = "from awq_engine.cli import main; main(['trust', 'org/tiny'])"
        said = run_python(command, hub.url, tmp_path).stderr
        assert hub.downloaded() == {"config.json", "modeling_new.py", "configuration_new.py"}
    assert f"repository org/tiny, commit {COMMIT}" in said
    assert "nobody is there to agree" in said
