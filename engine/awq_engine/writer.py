"""The checkpoint on disk: finished blocks, then shards put together from byte ranges.

A block's tensors are written once, when it is done. The final shards copy those bytes, and the bytes of every tensor
that nothing touched, from file to file: no tensor is decoded, and what was not quantized stays what it was to the
last bit. The output appears under its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from awq_engine.checkpoint import Checkpoint, TensorInfo, read_header
from awq_engine.own_code import CODE, is_trusted
from awq_engine.storage import exchange, sync_directory, write_atomically

SHARD_BYTES = 5_000_000_000
COPY_CHUNK = 16 << 20
COPIED_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*")
"""Files beside the weights that belong to a model: tokenizer, generation settings, chat template, licence."""
REPLACED_FILES = (
    "config.json", "model.safetensors.index.json", "quantization_report.json", "quant_config.json",
    "quantize_config.json",
)  # fmt: skip
"""Written anew, or a description of another format."""


def save_block(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write a finished block durably; return the SHA-256 of the file."""
    data = save({name: tensor.contiguous().cpu() for name, tensor in sorted(tensors.items())})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    sync_directory(path.parent.parent)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; "" when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def output_tensors(
    checkpoint: Checkpoint, block_files: Iterable[Path], quantized: set[str], split: Mapping[str, list[str]]
) -> list[TensorInfo]:
    """Every tensor of the output in the source's order, each where its bytes lie now.

    Args:
        quantized: names of quantized linears, whose `.weight` gives way to packed tensors.
        split: source tensors that give way to tensors of these names (fused experts).
    """
    written: dict[str, TensorInfo] = {}
    for file in block_files:
        written |= read_header(file)
    packed: dict[str, list[str]] = {}
    whole = checkpoint.tensors.keys() | {name for names in split.values() for name in names}
    for key in written:
        if key not in whole:
            packed.setdefault(key.rpartition(".")[0], []).append(key)
    result: list[TensorInfo] = []
    for key, info in checkpoint.tensors.items():
        for name in split.get(key, [key]):
            linear = name.removesuffix(".weight")
            if name.endswith(".weight") and linear in quantized:
                result += [written.pop(part) for part in packed[linear]]
            else:
                result.append(written.pop(name) if key in split else written.pop(name, info))
    assert not written, f"tensors without a place in the checkpoint: {sorted(written)[:3]}"
    return result


@contextlib.contextmanager
def staging_folder(staging: Path) -> Iterator[Path]:
    """The folder to assemble the output in; what was not published under its final name is removed."""
    shutil.rmtree(staging, ignore_errors=True)  # of an engine that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_shards(folder: Path, tensors: list[TensorInfo], progress: Callable[[int, int], None]) -> None:
    """Write the tensors as one `model.safetensors`, or as numbered shards with an index."""
    shards = _split(tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    done = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                _copy_bytes(tensor, file)
                done += tensor.nbytes
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def write_side_files(
    folder: Path, checkpoint: Checkpoint, quantization: dict[str, Any], card: str, report: dict[str, Any]
) -> None:
    """`config.json` with its quantization, report, model card, and copies of the tokenizer and other small files."""
    copy_side_files(checkpoint.path, folder)
    write_config(folder, checkpoint, quantization)
    write_json(folder / "quantization_report.json", report)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_config(folder: Path, checkpoint: Checkpoint, quantization: dict[str, Any]) -> None:
    """The checkpoint's `config.json` with another `quantization_config`."""
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    write_json(folder / "config.json", {**config, "quantization_config": quantization})


def copied_patterns(folder: Path) -> tuple[str, ...]:
    """What belongs to a model beside its weights: with its code where that was allowed to run."""
    return (*COPIED_PATTERNS, *((CODE,) if is_trusted(folder) else ()))


def copy_side_files(source: Path, target: Path, also: Iterable[str] = ()) -> None:
    """The small files of a model folder that its copy in another form needs, and those of the patterns `also`."""
    found = {file for pattern in (*copied_patterns(source), *also) for file in source.glob(pattern) if file.is_file()}
    for file in sorted(found):
        if file.name not in REPLACED_FILES:
            shutil.copyfile(file, target / file.name)


def publish(staging: Path, output: Path) -> None:
    """Give the complete folder its final name; an older folder of that name gives way in the same step."""
    for file in staging.iterdir():
        sync_file(file)
    sync_directory(staging)
    if not (output.exists() and exchange(staging, output)):
        _replace(staging, output)
    sync_directory(output.parent)


def _replace(staging: Path, output: Path) -> None:
    """In two steps, for want of one: a machine that dies between them leaves the older folder as `.replaced`."""
    retired = staging.with_suffix(".replaced")
    shutil.rmtree(retired, ignore_errors=True)
    if output.exists():
        output.rename(retired)
    staging.rename(output)
    shutil.rmtree(retired, ignore_errors=True)


def _split(tensors: list[TensorInfo]) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _header(tensors: list[TensorInfo]) -> bytes:
    """The length and JSON header of a safetensors file, padded so that the data starts 8-byte aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]
        }  # fmt: skip
        offset += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _copy_bytes(tensor: TensorInfo, target: Any) -> None:
    left = tensor.nbytes
    with tensor.file.open("rb") as source:
        source.seek(tensor.start)
        while left:
            chunk = source.read(min(left, COPY_CHUNK))
            if not chunk:
                raise OSError(f"{tensor.file} ended while '{tensor.name}' was being copied")
            target.write(chunk)
            left -= len(chunk)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """As people read it; half a character, which JSON can say and UTF-8 cannot, stays the escape that it was."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
