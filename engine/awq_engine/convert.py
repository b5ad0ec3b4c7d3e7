"""From one format on disk to another: the same integers, steps and zero points, and every other byte as it was.

Nothing is rounded on the way: a format that cannot hold a weight exactly is refused, with the weight's name. The result
is put together beside its final place, read back, compared with the source bit by bit, and only then given its name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from awq_engine.card import converted_card
from awq_engine.checkpoint import Checkpoint, TensorInfo, read_checkpoint, read_header
from awq_engine.disk import check_disk
from awq_engine.errors import BadInputError, VerificationError
from awq_engine.formats.limits import Format, bits_problem
from awq_engine.formats.registry import CODECS
from awq_engine.formats.stated import Quantization, read_quantization
from awq_engine.output import check_output
from awq_engine.placement import as_floats
from awq_engine.skeleton import build_skeleton
from awq_engine.skip_list import skip_list
from awq_engine.spec import QuantSpec
from awq_engine.unpacked import read_weight
from awq_engine.writer import copy_side_files, publish, save_block, staging_folder, write_config, write_shards
from awq_kernels.int_weight import IntWeight

PART_BYTES = 1 << 30
"""Converted tensors that are held in memory at once."""
Progress = Callable[[str, int, int], None]
"""What is being done, and how much of it is done, of how much."""
Pack = Callable[[IntWeight, QuantSpec, str], dict[str, torch.Tensor]]
"""The tensors of a linear in some format, from its weight, what is stated about it, and its name for errors."""


@dataclass(frozen=True)
class Converted:
    """What came of it."""

    output: Path
    layout: Format
    linears: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """What `convert --json` prints."""
        return {
            "output": str(self.output), "format": self.layout.value, "linears": self.linears,
            "bytes_before": self.bytes_before, "bytes_after": self.bytes_after,
        }  # fmt: skip


def convert(source: Path, output: Path, layout: Format, *, overwrite: bool = False, progress: Progress) -> Converted:
    """Write the quantized model in `source` to `output` in another format.

    Raises:
        BadInputError: the source is not quantized, or the format cannot hold it exactly; says which weight and why.
        UsageError: the output is in the way. ResourceError: it does not fit on the disk.
        VerificationError: what was written reads back differently (our bug); nothing was published.
    """
    checkpoint, quantization = read_quantized(source)
    check_output(output, source.resolve(), overwrite)
    check_disk(output, 2 * checkpoint.nbytes, "the converted model and its parts")
    specs = _target_specs(checkpoint, quantization, layout, progress)
    codec = CODECS[layout]

    def complete(staging: Path) -> None:
        skeleton = build_skeleton(as_floats(checkpoint, quantization))
        write_config(staging, checkpoint, codec.settings(specs, skip_list(skeleton, specs)))
        _convert_card(staging / "README.md", layout)
        _verify(checkpoint, quantization, staging, list(specs), progress)
        check_output(output, source.resolve(), overwrite)

    nbytes = repack(checkpoint, quantization, output, codec.pack, specs, complete, progress)
    return Converted(output, layout, len(specs), checkpoint.nbytes, nbytes)


def read_quantized(source: Path) -> tuple[Checkpoint, Quantization]:
    """A model that must be quantized already; `BadInputError` when it is not."""
    checkpoint = read_checkpoint(source)
    quantization = read_quantization(checkpoint)
    if quantization is None:
        raise BadInputError(f"{source} is not quantized; `awq-tui quantize` makes a quantized model of it.")
    return checkpoint, quantization


def repack(
    checkpoint: Checkpoint,
    quantization: Quantization,
    output: Path,
    pack: Pack,
    specs: dict[str, QuantSpec],
    complete: Callable[[Path], None],
    progress: Progress,
) -> int:
    """Write the checkpoint's linears as `pack` has them, and everything else as it is, to the folder `output`.

    Args:
        complete: writes what describes the new form into the folder, where the weights and small files are by then, and
            raises when the folder must not be published.
    Returns:
        bytes of all tensors.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as workspace:
        packed = _pack_all(checkpoint, quantization, pack, specs, Path(workspace) / "parts", progress)
        tensors = list(_in_order(checkpoint, quantization, packed))
        with staging_folder(Path(workspace) / "model") as staging:
            write_shards(staging, tensors, lambda done, total: progress("writing", done, total))
            copy_side_files(checkpoint.path, staging, also=["*.md"])
            complete(staging)
            publish(staging, output)
    return sum(tensor.nbytes for tensor in tensors)


def _target_specs(
    checkpoint: Checkpoint, quantization: Quantization, layout: Format, progress: Progress
) -> dict[str, QuantSpec]:
    """What config.json will say about each linear; symmetric only if every weight is, since readers join some."""
    linears = quantization.linears(checkpoint)
    if not linears:
        raise BadInputError(f"{checkpoint.path} says it is quantized, but has no quantized linear.")
    stated = {linear: quantization.spec_of(linear) for linear in linears}
    for spec in stated.values():
        if problem := bits_problem(layout, spec.bits):
            raise BadInputError(problem)
    if not layout.mixes and len({(spec.bits, spec.group_size) for spec in stated.values()}) > 1:
        raise BadInputError(
            f"The linears of {checkpoint.path} differ in bits or group size, which the format {layout} cannot hold; "
            "use --format compressed-tensors or gptq_v2."
        )
    symmetric = True
    for done, linear in enumerate(linears):
        progress("reading", done, len(linears))
        if not (symmetric := read_weight(checkpoint, quantization, linear).symmetric):
            break
    return {linear: QuantSpec(spec.bits, spec.group_size, symmetric) for linear, spec in stated.items()}


def _pack_all(
    checkpoint: Checkpoint,
    quantization: Quantization,
    pack: Pack,
    specs: dict[str, QuantSpec],
    folder: Path,
    progress: Progress,
) -> dict[str, list[TensorInfo]]:
    """The new tensors of every linear, in files under `folder`, about `PART_BYTES` in each."""
    files: list[Path] = []
    held: dict[str, torch.Tensor] = {}
    for done, (linear, spec) in enumerate(specs.items()):
        progress("converting", done, len(specs))
        parts = pack(read_weight(checkpoint, quantization, linear), spec, linear)
        held |= {f"{linear}.{part}": tensor for part, tensor in parts.items()}
        if sum(tensor.nbytes for tensor in held.values()) >= PART_BYTES:
            files.append(_save(folder, len(files), held))
            held = {}
    files.append(_save(folder, len(files), held))
    packed: dict[str, list[TensorInfo]] = {}
    for file in files:
        for key, info in read_header(file).items():
            packed.setdefault(key.rpartition(".")[0], []).append(info)
    return packed


def _save(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / f"{number:05d}" / "part.safetensors"
    save_block(path, tensors)
    return path


def _in_order(
    checkpoint: Checkpoint, quantization: Quantization, packed: dict[str, list[TensorInfo]]
) -> Iterator[TensorInfo]:
    """The tensors of the output in the source's order; a linear's stand where its first one stood."""
    waiting = dict(packed)
    for key, info in checkpoint.tensors.items():
        linear, _, part = key.rpartition(".")
        if linear not in packed or part not in quantization.reader.parts:
            yield info
        elif linear in waiting:
            yield from waiting.pop(linear)


def _convert_card(card: Path, layout: Format) -> None:
    if card.exists():
        text = card.read_bytes().decode("utf-8", "surrogateescape")
        card.write_bytes(converted_card(text, layout).encode("utf-8", "surrogateescape"))


def _verify(
    checkpoint: Checkpoint, quantization: Quantization, staging: Path, linears: list[str], progress: Progress
) -> None:
    """Every weight of the written files is the source's, bit for bit."""
    written = read_checkpoint(staging)
    stated = read_quantization(written)
    if stated is None or sorted(stated.linears(written)) != sorted(linears):
        raise VerificationError(f"The model written to {staging} lacks quantized linears; please report this.")
    for done, linear in enumerate(linears, 1):
        ours, theirs = read_weight(written, stated, linear), read_weight(checkpoint, quantization, linear)
        if not _same(ours, theirs):
            raise VerificationError(f"{linear} reads back differently from what was converted; please report this.")
        progress("verifying", done, len(linears))


def _same(one: IntWeight, other: IntWeight) -> bool:
    return (
        torch.equal(one.q, other.q)
        and torch.equal(one.zero_point, other.zero_point)
        and torch.equal(one.scale.float(), other.scale.float())
        and (one.group_size, one.bits) == (other.group_size, other.bits)
    )
