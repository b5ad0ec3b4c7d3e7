"""What a model folder holds, read without trusting it and without loading a single weight.

Only `config.json`, the safetensors index and the JSON headers of the shards are read (standard library only: the app
imports this module), so a picker can describe a 100 GB model in milliseconds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.errors import BadInputError

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
LONGEST_NAME = 63
"""Characters of a shard's name; of four bytes each they are as many as a file's name can have."""
MAX_HEADER = 100 << 20
"""Bytes; the safetensors library's own limit."""
MAX_SIZE, MAX_DIMENSIONS = 1 << 63, 64
"""Of a dimension, and of dimensions: the product of more is a number that takes minutes to make."""
TEMPLATES = "additional_chat_templates"
"""A folder inside a model's, which transformers reads."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is."""

    name: str
    dtype: str
    """As safetensors spells it: F32, BF16, I32, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Byte offset in the file."""
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors weights that are all there."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    """By name, in the order of the shards."""

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def parameters(self) -> int:
        """Stored numbers; a packed INT4 word counts as one."""
        return sum(tensor.numel for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The `quantization_config` of an already quantized model."""
        found = self.config.get("quantization_config")
        return found if isinstance(found, dict) else None

    @property
    def main_dtype(self) -> str:
        """The dtype most bytes are stored in."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype], default="unknown")


def read_checkpoint(path: Path) -> Checkpoint:
    """Describe the model in `path`.

    Raises `BadInputError` when it is no model folder, has only pickled weights, or when a shard is missing,
    truncated or not what the index says.
    """
    config = read_config(path)
    index = path / "model.safetensors.index.json"
    tensors = _read_indexed(path, index) if index.is_file() else _read_single(path)
    if not tensors:
        raise BadInputError(f"The weights in {path} are empty: no tensor is stored there.")
    return Checkpoint(path, config, tensors)


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a model folder as a dictionary; `BadInputError` if there is none."""
    if not path.is_dir():
        raise BadInputError(f"{path} is not a folder; give a model folder, a run id or a Hub id (org/name).")
    refuse_links_out(path)
    file = path / "config.json"
    if not file.is_file():
        raise BadInputError(f"{path} is not a model folder: it has no config.json.")
    config = _read_json(file)
    if not isinstance(config, dict):
        raise BadInputError(f"{file} does not hold a JSON object; download the model again.")
    return config


def refuse_links_out(path: Path) -> None:
    """`BadInputError` when a file in the model folder `path` is a link to something outside of it.

    Such a link would have us read, copy into the output and upload what the folder's maker chose on this machine. The
    Hub's cache keeps a repository's files in `blobs`, beside the `snapshots` that link to them.
    """
    root = path.resolve()
    inside = [root, (root.parent.parent / "blobs").resolve()] if root.parent.name == "snapshots" else [root]
    for folder in (root, root / TEMPLATES):
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in inside):
                    raise BadInputError(
                        f"{path / file.name} is a link to {file.resolve()}, outside of the model's folder; refused. "
                        "Put the file itself there if it belongs to the model."
                    )


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; every offset is checked against the file's real size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise BadInputError(f"{file} is truncated or no safetensors file ({size} bytes); download it again.")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise BadInputError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{file} has a damaged safetensors header; download it again.") from error
    if not isinstance(header, dict):
        raise BadInputError(f"{file} has a damaged safetensors header; download it again.")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _tensor_info(file, size, 8 + length, name, entry) for name, entry in entries.items()}
    _check_layout(file, size, 8 + length, tensors)
    return tensors


def _check_layout(file: Path, size: int, base: int, tensors: dict[str, TensorInfo]) -> None:
    """Every byte belongs to one tensor, as the safetensors library wants it too."""
    end = base
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != end:
            raise BadInputError(
                f"{file}: tensor '{tensor.name}' does not begin where the one before it ends; download the file again."
            )
        end += tensor.nbytes
    if end != size:
        raise BadInputError(f"{file} has {size - end} bytes that belong to no tensor; download it again.")


def _tensor_info(file: Path, size: int, base: int, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(n) is int and 0 <= n < MAX_SIZE for n in (*shape, start, end)) and len(shape) <= MAX_DIMENSIONS
        valid = valid and isinstance(dtype, str) and start <= end
    except (KeyError, TypeError, ValueError):
        valid, dtype, shape, start, end = False, "", (), 0, 0
    if not valid or (dtype in DTYPE_BYTES and end - start != DTYPE_BYTES[dtype] * math.prod(shape)):
        raise BadInputError(f"{file}: the header entry of tensor '{name}' is damaged; download the file again.")
    if base + end > size:
        missing = base + end - size
        raise BadInputError(
            f"{file} is truncated: tensor '{name}' ends {missing} bytes past its end; download it again."
        )
    return TensorInfo(name, dtype, shape, file, base + start, end - start)


def _read_single(path: Path) -> dict[str, TensorInfo]:
    file = path / "model.safetensors"
    if file.is_file():
        return read_header(file)
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return read_header(others[0])
    if others:
        raise BadInputError(
            f"{path} has {len(others)} safetensors files but no model.safetensors.index.json; add the index."
        )
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise BadInputError(
            f"{path} has only pickled weights ({pickled[0]}), which can run code when opened and are never read; "
            "convert them to safetensors first."
        )
    raise BadInputError(f"{path} has a config.json but no weights: model.safetensors is missing.")


def _read_indexed(path: Path, index: Path) -> dict[str, TensorInfo]:
    data = _read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadInputError(f"{index} has no usable weight_map; download it again.")
    tensors: dict[str, TensorInfo] = {}
    for shard in dict.fromkeys(weight_map.values()):
        tensors.update(read_header(_shard_path(path, shard, index)))
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise BadInputError(
            f"{index} names {len(absent)} tensors that no shard holds, first '{absent[0]}'; download the model again."
        )
    return {name: tensors[name] for name in weight_map}


def _shard_path(path: Path, shard: str, index: Path) -> Path:
    if Path(shard).name != shard or len(shard) > LONGEST_NAME:
        raise BadInputError(f"{index} names the shard '{shard[:80]}', which is no file of its own folder; refused.")
    file = path / shard
    if not file.is_file():
        raise BadInputError(f"{path} lacks the shard {shard} that its index names; download the model again.")
    return file


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise BadInputError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{file} is not valid JSON ({error}); download it again.") from error
