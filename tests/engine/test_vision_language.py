"""Checkpoints with more than a language model in them: only its blocks are quantized, the rest stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from zoo import Findings, examine, quiet, write_model

from awq_engine.architecture import find_blocks, outside_parts, towers
from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.skeleton import build_skeleton

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gemma3")


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWQ_TUI_HOME", str(folder / "home"))
        return examine("gemma3", folder)


def raw(checkpoint: Checkpoint, name: str) -> bytes:
    info = checkpoint.tensors[name]
    return info.file.read_bytes()[info.start : info.start + info.nbytes]


def test_everything_but_the_blocks_is_copied(found: Findings, folder: Path):
    """Towers, projector, embeddings and head have the very bytes they had; every linear of the blocks is quantized."""
    source, output = read_checkpoint(folder / "source"), read_checkpoint(folder / "output")
    kept = [name for name in source.tensors if "language_model.model.layers" not in name]

    assert any("vision_tower" in name for name in kept)
    assert any("multi_modal_projector" in name for name in kept)
    assert all(raw(source, name) == raw(output, name) for name in kept)
    assert set(found.linears.values()) == {found.blocks}
    assert len(found.linears) == 7


def test_the_plan_names_what_is_left(found: Findings):
    assert found.skipped == {"model.vision_tower": "not among the decoder blocks"}


def test_config_keeps_its_form(found: Findings, folder: Path):
    """The nested configs are as they were; the skip list names the tower as transformers and as vLLM know it."""
    before = json.loads((folder / "source/config.json").read_text())
    after = json.loads((folder / "output/config.json").read_text())
    quantization = after.pop("quantization_config")

    assert after == before
    assert quantization["modules_to_not_convert"] == ["model.vision_tower", "vision_tower", "lm_head"]


def test_the_language_model_is_intact(found: Findings):
    assert max(found.stream, found.folded, found.reloaded, found.reference) < 1e-4


def test_towers_are_never_loaded(folder: Path, found: Findings):
    """What is in memory beside the blocks while they are quantized: embeddings, norms, projectors, no tower."""
    skeleton = build_skeleton(read_checkpoint(folder / "source"))
    with skeleton.loaded_outer() as model:
        real = {name: parameter for name, parameter in model.named_parameters() if not parameter.is_meta}
        loaded = {name for name, parameter in real.items() if parameter.untyped_storage().nbytes() > 4}

    assert skeleton.towers == ["model.vision_tower"]
    assert "model.language_model.embed_tokens.weight" in loaded
    assert not any("vision_tower" in name for name in loaded)


@pytest.mark.parametrize(
    ("model_type", "blocks", "left"),
    [
        ("llava", "model.language_model.layers", ["model.vision_tower"]),
        ("qwen3_vl", "model.language_model.layers", ["model.visual"]),
        ("smolvlm", "model.text_model.layers", ["model.vision_model"]),
        ("phi4_multimodal", "model.layers", []),
        ("llama", "model.layers", []),
    ],
)
def test_the_text_is_found(model_type: str, blocks: str, left: list[str], tmp_path: Path):
    """Its blocks by its config, towers by theirs, whatever they are called."""
    quiet()
    model = build_skeleton(read_checkpoint(write_model(model_type, tmp_path))).model

    assert (find_blocks(model), towers(model)) == (blocks, left)
    assert all(not blocks.startswith(part) for part in outside_parts(model, blocks))
