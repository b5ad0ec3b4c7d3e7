"""A quantized model as a folder for MLX: Apple's machines, through mlx-lm.

MLX stores a linear X of `bits` bits in groups along the inputs, the weight being `scale * q + bias`:

    X.weight   uint32 [out, in * bits / 32]     from the lowest bits up, 3-bit values crossing words
    X.scales   float  [out, in / group_size]    the steps as they are
    X.biases   float  [out, in / group_size]    -scale * zero_point, rounded to the dtype of the steps

Names stay those of Hugging Face, which mlx-lm renames itself; `quantization` in config.json says bits and group size,
for the linears that differ one by one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.convert import Progress, read_quantized, repack
from awq_engine.disk import check_disk
from awq_engine.errors import BadInputError, VerificationError
from awq_engine.exports.exported import Exported
from awq_engine.formats.stated import Quantization
from awq_engine.formats.words import pack_words, unpack_words
from awq_engine.output import check_output
from awq_engine.spec import QuantSpec
from awq_engine.tensor_files import open_tensors
from awq_engine.unpacked import read_weight
from awq_engine.writer import write_json
from awq_kernels.int_weight import IntWeight

GROUPS = (128, 64, 32)
"""The group sizes MLX has kernels for."""
BITS = (2, 3, 4, 8)
_CARD = """---
library_name: mlx
tags: [mlx, awq-tui]
---

Converted from {name} by awq-tui: the same integers and steps. Runs with `mlx_lm.generate --model FOLDER`.
"""


def export_mlx(source: Path, output: Path, *, overwrite: bool = False, progress: Progress) -> Exported:
    """Write the quantized model in `source` to the folder `output`.

    Raises:
        BadInputError: not quantized, or a linear has bits or groups that MLX does not know; says which.
        UsageError: the output is in the way. ResourceError: it does not fit on the disk.
        VerificationError: what was written reads back differently (our bug); nothing was published.
    """
    checkpoint, quantization = read_quantized(source)
    check_output(output, source.resolve(), overwrite)
    check_disk(output, 2 * checkpoint.nbytes, "the MLX model and its parts")
    specs = {linear: _mlx_spec(checkpoint, quantization, linear) for linear in quantization.linears(checkpoint)}

    def complete(staging: Path) -> None:
        _write_config(staging, checkpoint, specs)
        (staging / "README.md").write_text(_CARD.format(name=source.resolve().name), encoding="utf-8")
        _verify(checkpoint, quantization, staging, specs, progress)
        check_output(output, source.resolve(), overwrite)

    nbytes = repack(checkpoint, quantization, output, _pack, specs, complete, progress)
    kinds = Counter(f"{spec.bits} bits, groups of {spec.group_size}" for spec in specs.values())
    return Exported(output, dict(kinds), (), nbytes)


def _mlx_spec(checkpoint: Checkpoint, quantization: Quantization, linear: str) -> QuantSpec:
    """Bits and the largest group MLX knows that divides this linear's own."""
    weight = read_weight(checkpoint, quantization, linear)
    group_size = next((size for size in GROUPS if weight.group_size % size == 0), None)
    if group_size is None or weight.bits not in BITS or weight.order is not None:
        order = ", its inputs grouped in another order" if weight.order is not None else ""
        raise BadInputError(
            f"{linear} has {weight.bits} bits in groups of {weight.group_size} inputs{order}; MLX knows "
            f"{', '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUPS))}, in order."
        )
    return QuantSpec(weight.bits, group_size, False)


def _pack(weight: IntWeight, spec: QuantSpec, name: str) -> dict[str, torch.Tensor]:
    repeats = weight.group_size // spec.group_size
    biases = (-weight.scale.float() * weight.zero_point.float()).to(weight.scale.dtype)
    return {
        "weight": pack_words(weight.q, weight.bits).view(torch.uint32),
        "scales": weight.scale.repeat_interleave(repeats, dim=1),
        "biases": biases.repeat_interleave(repeats, dim=1),
    }


def _write_config(folder: Path, checkpoint: Checkpoint, specs: dict[str, QuantSpec]) -> None:
    common = Counter(specs.values()).most_common(1)[0][0]
    stated: dict[str, Any] = _stated(common) | {
        linear: _stated(spec) for linear, spec in specs.items() if spec != common
    }
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    config = _positions(config) | config | {"quantization": stated, "quantization_config": stated}
    write_json(folder / "config.json", config)


def _positions(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings under the names of transformers 4 too: mlx-lm takes a default where it does not find them."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": None if rope.get("rope_type") == "default" else scaled}


def _stated(spec: QuantSpec) -> dict[str, int]:
    return {"group_size": spec.group_size, "bits": spec.bits}


def _verify(
    checkpoint: Checkpoint,
    quantization: Quantization,
    staging: Path,
    specs: dict[str, QuantSpec],
    progress: Progress,
) -> None:
    """Every linear of the written files has the source's integers and steps, and the minima that follow from them."""
    written = read_checkpoint(staging).tensors
    for done, (linear, spec) in enumerate(specs.items()):
        progress("verifying", done, len(specs))
        weight = read_weight(checkpoint, quantization, linear)
        parts = {}
        for part in ("weight", "scales", "biases"):
            with open_tensors(written[f"{linear}.{part}"].file) as file:
                parts[part] = file.get_tensor(f"{linear}.{part}")
        q = unpack_words(parts["weight"].view(torch.int32), spec.bits, weight.in_features)
        meant = _pack(dataclasses.replace(weight, q=q), spec, linear)
        same = torch.equal(q, weight.q) and all(torch.equal(parts[part], meant[part]) for part in ("scales", "biases"))
        if not same:
            raise VerificationError(f"{linear} reads back differently from what was exported; please report this.")
