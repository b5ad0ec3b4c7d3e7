"""A quantized checkpoint that is damaged, or that its config.json does not describe, is refused by the tensor's name.

Never a traceback, and never a model that runs on the wrong numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rounded_checkpoint import edit_config, round_plainly, write_float_folder
from safetensors.torch import load_file, save_file

from awq_engine.errors import BadInputError
from awq_engine.formats.codec import Kept
from awq_engine.formats.limits import Format
from awq_engine.formats.registry import CODECS
from awq_engine.runtime import load_model
from awq_engine.spec import QuantSpec

GROUP = 32
LINEAR = "model.layers.0.mlp.up_proj"
Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors], None]

FORMATS = {
    "awq": (Format.AWQ, False), "gptq": (Format.GPTQ, True), "gptq-asymmetric": (Format.GPTQ, False),
    "gptq_v2": (Format.GPTQ_V2, False), "compressed-tensors": (Format.COMPRESSED_TENSORS, False),
    "compressed-tensors-symmetric": (Format.COMPRESSED_TENSORS, True),
}  # fmt: skip
INTEGERS = {"qweight", "qzeros", "g_idx", "weight_packed", "weight_shape", "weight_zero_point"}
OPTIONAL = {"g_idx"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of one block in each format; up_proj is as large as no other linear."""
    root = tmp_path_factory.mktemp("good")
    floats = write_float_folder(root / "floats", num_hidden_layers=1, intermediate_size=192)
    return {name: _write(floats, root / name, *kind) for name, kind in FORMATS.items()}


def _write(floats: Path, folder: Path, layout: Format, symmetric: bool) -> Path:
    folder.mkdir()
    spec, codec, specs, tensors = QuantSpec(4, GROUP, symmetric), CODECS[layout], {}, {}
    for key, tensor in load_file(floats / "model.safetensors").items():
        name = key.removesuffix(".weight")
        if not name.endswith("_proj"):
            tensors[key] = tensor
            continue
        weight = round_plainly(tensor, GROUP, symmetric)
        weight.zero_point.clamp_(min=1)
        tensors |= {f"{name}.{part}": packed for part, packed in codec.pack(weight, spec, name).items()}
        specs[name] = spec
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((floats / "config.json").read_bytes())
    edit_config(folder, quantization_config=codec.settings(specs, Kept(("lm_head",))))
    return folder


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in ("model.safetensors", "config.json"):
        (target / file).write_bytes((source / file).read_bytes())
    return target


def edit(folder: Path, damage: Damage) -> Path:
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return folder


def refusal(folder: Path) -> str:
    """What loading says; one or two sentences for a person."""
    with pytest.raises(BadInputError) as caught:
        load_model(folder, device="cpu", backend="reference")
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_ones_load(name: str, good: dict[str, Path]) -> None:
    assert load_model(good[name], device="cpu", backend="reference").quantized == 7


DAMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a-row-less": lambda t: t[:-1],
    "a-row-more": lambda t: torch.cat([t, t[-1:]]),
    "half": lambda t: t[: len(t) // 2],
    "a-column-less": lambda t: t[..., :-1],
    "a-column-more": lambda t: torch.cat([t, t[..., -1:]], dim=-1),
    "a-dimension-more": lambda t: t[None],
    "flat": lambda t: t.flatten() if t.ndim > 1 else t[:, None],
    "transposed": lambda t: t.T if t.ndim > 1 else t[:0],
    "nothing": lambda t: t[:0],
    "float64": lambda t: t.double(),
    "uint8": lambda t: t.to(torch.uint8),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing", "nan", "infinite"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_tensor_is_named(name: str, damage: str, good: dict[str, Path], tmp_path: Path) -> None:
    parts = [key for key in load_file(good[name] / "model.safetensors") if key.startswith(f"{LINEAR}.")]
    assert len(parts) >= 3
    for key in parts:
        part = key.rpartition(".")[2]
        if (damage in ("nan", "infinite") and part in INTEGERS) or (damage == "missing" and part in OPTIONAL):
            continue
        message = refusal(
            edit(copy(good[name], tmp_path / part), lambda tensors, key=key: _damage(tensors, key, damage))
        )
        assert key in message or LINEAR in message, message


def _damage(tensors: Tensors, key: str, damage: str) -> None:
    if damage == "missing":
        del tensors[key]
    elif damage in ("nan", "infinite"):
        tensors[key][0, -1] = float("nan" if damage == "nan" else "inf")
    else:
        tensors[key] = DAMAGES[damage](tensors[key])


@pytest.mark.parametrize(("damage", "words"), [(torch.Tensor.char, "integers"), (lambda t: t / 0, "not finite")])
@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
def test_a_damaged_tensor_beside_the_linears_is_named(
    key: str, damage: Callable[[torch.Tensor], torch.Tensor], words: str, good: dict[str, Path], tmp_path: Path
) -> None:
    folder = edit(copy(good["awq"], tmp_path / "model"), lambda tensors: tensors.update({key: damage(tensors[key])}))
    message = refusal(folder)
    assert key in message
    assert words in message


def test_generation_settings_that_are_no_json(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(good["awq"], tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json cannot be used" in refusal(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_a_linear_in_the_place_of_another_is_named(name: str, good: dict[str, Path], tmp_path: Path) -> None:
    """Consistent in itself, but not what config.json describes there."""

    def swap(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(f"{LINEAR}.")]:
            other = key.replace("up_proj", "down_proj")
            tensors[key], tensors[other] = tensors[other], tensors[key]

    message = refusal(edit(copy(good[name], tmp_path / "model"), swap))
    assert "mlp." in message
    assert "config.json describes" in message


def _settings(name: str, changes: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Change settings where this format has them; other names for them in compressed-tensors."""
    if name.startswith("compressed"):
        names = {"bits": "num_bits"}
        return lambda stated: stated["config_groups"]["group_0"]["weights"].update(
            {names.get(key, key): value for key, value in changes.items()}
        )
    return lambda stated: stated.update(changes)


@pytest.mark.parametrize(
    "changes",
    [{"bits": 8}, {"bits": 3}, {"bits": 2}, {"bits": 0}, {"bits": "four"}, {"group_size": 64}, {"group_size": 16},
     {"group_size": 48}, {"group_size": 0}, {"group_size": -5}, {"group_size": None}, {"group_size": "32"}],
    ids=lambda changes: "-".join(f"{key}-{value}" for key, value in changes.items()),
)  # fmt: skip
@pytest.mark.parametrize("name", FORMATS)
def test_settings_that_the_tensors_contradict(
    name: str, changes: dict[str, Any], good: dict[str, Path], tmp_path: Path
) -> None:
    """Whoever is wrong: the tensor or the setting is named."""
    folder = copy(good[name], tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    _settings(name, changes)(stated)
    edit_config(folder, quantization_config=stated)
    message = refusal(folder)
    assert "model.layers.0." in message or "bits in groups of" in message or "damaged" in message, message


SCHEME = {
    "format": "pack-quantized",
    "weights": {"type": "int", "strategy": "group", "num_bits": 4, "group_size": GROUP, "symmetric": False},
}
ROTATED = {"type": "hadamard", "apply": [{"location": "weight_input"}, {"location": "input"}]}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("awq", {"version": "gemv"}, "qzeros is for 6 outputs"),
        ("awq", {"version": "marlin"}, "model.layers.0."),
        ("awq", {"version": "gemm_v9"}, "version gemm_v9"),
        ("awq", {"quant_method": "gptq"}, "model.layers.0."),
        ("awq", {"quant_method": "quip"}, "quantized with quip"),
        ("gptq", {"checkpoint_format": "gptq_v7"}, "layout gptq_v7"),
        ("gptq", {"quant_method": "awq"}, "model.layers.0."),
        ("gptq", {"quant_method": "compressed-tensors"}, "damaged"),
        ("gptq", {"dynamic": {"+:(": {}}}, "damaged"),
        ("compressed-tensors", {"config_groups": {}}, "layout"),
        ("compressed-tensors", {"config_groups": None}, "damaged"),
        ("compressed-tensors", {"config_groups": {"a": {**SCHEME, "targets": ["re:(("]}}}, "damaged"),
        ("compressed-tensors", {"transform_config": {"config_groups": {"R4": ROTATED}}}, "transforms activations"),
        ("compressed-tensors", {"format": "marlin-24", "config_groups": {"group_0": {"targets": []}}}, "marlin-24"),
    ],
)  # fmt: skip
def test_versions_that_are_others_or_unknown(
    name: str, changes: dict[str, Any], words: str, good: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(good[name], tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config={**stated, **changes})
    assert words in refusal(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_packed_tensors_without_a_word_about_them(name: str, good: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(good[name], tmp_path / "model")
    edit_config(folder, quantization_config=None)
    assert "model.layers.0." in refusal(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_words_about_packed_tensors_without_any(name: str, good: dict[str, Path], tmp_path: Path) -> None:
    floats = copy(good[name].parent / "floats", tmp_path / "model")
    stated = json.loads((good[name] / "config.json").read_text())["quantization_config"]
    edit_config(floats, quantization_config=stated)
    assert "no quantized linear" in refusal(floats)


def test_zero_points_of_a_symmetric_model_that_are_not_in_the_middle(good: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(good["compressed-tensors"], tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    stated["config_groups"]["group_0"]["weights"]["symmetric"] = True
    edit_config(folder, quantization_config=stated)
    assert "weight_zero_point" in refusal(folder)


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed-tensors"])
@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_truncated_file(name: str, kept: int, good: dict[str, Path], tmp_path: Path) -> None:
    """Cut in the length, in the header, in the last tensor."""
    folder = copy(good[name], tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert "model.safetensors" in message
    assert "truncated" in message
