"""A quantized model as one GGUF file, for llama.cpp and what is built on it.

The integers are repacked, not requantized, wherever llama.cpp has blocks that hold them (`gguf_blocks.py`); the rest is
requantized from the AWQ-scaled weights and counted. One tensor is held at a time; the file is read back and compared
before it gets its name.
"""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Blocks

from awq_engine.checkpoint import Checkpoint, TensorInfo
from awq_engine.convert import Progress, read_quantized
from awq_engine.disk import check_disk
from awq_engine.errors import BadInputError, UsageError, VerificationError, last_clause
from awq_engine.exports.exported import Exported
from awq_engine.exports.gguf_blocks import blocks_for, fallback_for, pack, worst_error
from awq_engine.exports.gguf_metadata import Family, Shape, add_metadata, family_of, read_shape, rope_factors
from awq_engine.exports.gguf_tokenizer import add_tokenizer
from awq_engine.formats.stated import Quantization
from awq_engine.storage import sync_directory
from awq_engine.tensor_files import open_tensors
from awq_engine.unpacked import read_weight
from awq_engine.writer import sync_file
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize

STORED = {"F32": Blocks.F32, "F16": Blocks.F16, "BF16": Blocks.BF16}
NOT_EXPORTED = ("rotary_emb.inv_freq",)
"""Computed by llama.cpp itself."""


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file, packed when its turn comes."""

    name: str
    blocks: Blocks
    shape: tuple[int, int]
    """Rows and bytes per row; one row for a vector."""
    read: Callable[[], np.ndarray]
    """uint8 of that shape."""
    linear: str | None = None


def export_gguf(source: Path, output: Path, *, overwrite: bool = False, progress: Progress) -> Exported:
    """Write the quantized model in `source` to the file `output`.

    Raises:
        BadInputError: not quantized, not of a family that can be written, or a tokenizer llama.cpp does not know.
        UsageError: the output is in the way. ResourceError: it does not fit on the disk.
        VerificationError: what was written reads back differently (our bug); nothing was published.
    """
    checkpoint, quantization = read_quantized(source)
    family, shape = family_of(checkpoint.config, source), read_shape(checkpoint.config, source)
    _check_output(output, overwrite)
    model = _Model(checkpoint, quantization, family, shape)
    tensors = list(model.tensors(progress))
    nbytes = sum(rows * row for rows, row in (tensor.shape for tensor in tensors))
    check_disk(output, nbytes, "the GGUF file")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as workspace:
        file = Path(workspace) / output.name
        writer = gguf.GGUFWriter(file, family.name)
        try:
            add_metadata(writer, checkpoint.config, shape, source.resolve().name, model.n_vocab)
            add_tokenizer(writer, source, model.n_vocab)
            _write_header(writer, tensors, source)
            _write_tensors(writer, tensors, progress)
        finally:
            writer.close()
        _verify(model, file, tensors, progress)
        _check_output(output, overwrite)
        sync_file(file)
        file.replace(output)
        sync_directory(output.parent)
    linears = [tensor for tensor in tensors if tensor.linear]
    return Exported(
        output, dict(Counter(tensor.blocks.name for tensor in linears)), tuple(model.requantized), output.stat().st_size
    )


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise UsageError(f"The output {output} is a folder; give a file name, such as {output / 'model.gguf'}.")
    if output.exists() and not overwrite:
        raise UsageError(f"The output {output} exists already; choose another with -o, or replace it with --overwrite.")


class _Model:
    """A checkpoint's tensors under llama.cpp's names."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization, family: Family, shape: Shape) -> None:
        self.checkpoint = checkpoint
        self.quantization = quantization
        self.family = family
        self.shape = shape
        if shape.layers > len(checkpoint.tensors):
            raise BadInputError(f"config.json in {checkpoint.path} says {shape.layers} layers, more than tensors.")
        self.names = gguf.get_tensor_name_map(family.arch, shape.layers)
        self.requantized: list[str] = []
        self.n_vocab = next(
            (info.shape[0] for key, info in checkpoint.tensors.items() if key.endswith("embed_tokens.weight")), 0
        )

    def tensors(self, progress: Progress) -> Iterator[_Tensor]:
        """All of them, in the checkpoint's order; `BadInputError` for one that llama.cpp has no name for."""
        linears = self.quantization.linears(self.checkpoint)
        packed = {f"{linear}.{part}" for linear in linears for part in self.quantization.reader.parts}
        for done, linear in enumerate(linears):
            progress("reading", done, len(linears))
            yield self._quantized(linear)
        for key, info in self.checkpoint.tensors.items():
            if key not in packed and not key.endswith(NOT_EXPORTED):
                yield self._floats(key, info)
        if (factors := rope_factors(self.checkpoint.config, self.shape)) is not None:
            divisors = factors.view(np.uint8)[None]
            yield _Tensor("rope_freqs.weight", Blocks.F32, (1, divisors.shape[1]), lambda: divisors)

    def weight(self, linear: str) -> IntWeight:
        """One quantized linear with its rows in llama.cpp's order."""
        weight = read_weight(self.checkpoint, self.quantization, linear)
        rows = self._rows(linear, weight.out_features)
        if rows is None:
            return weight
        return IntWeight(
            weight.q[rows], weight.scale[rows], weight.zero_point[rows], weight.group_size, weight.bits, weight.order
        )

    def _quantized(self, linear: str) -> _Tensor:
        weight = self.weight(linear)
        blocks = blocks_for(weight)
        if blocks is None:
            self.requantized.append(linear)
            blocks = fallback_for(weight)
        block, size = gguf.GGML_QUANT_SIZES[blocks]
        shape = (weight.out_features, weight.in_features // block * size)
        return _Tensor(self._name(f"{linear}.weight"), blocks, shape, lambda: pack(self.weight(linear), blocks), linear)

    def _floats(self, key: str, info: TensorInfo) -> _Tensor:
        if info.dtype not in STORED or len(info.shape) not in (1, 2):
            raise BadInputError(
                f"{self.checkpoint.path}: {key} is {info.dtype} {list(info.shape)}, which GGUF cannot hold."
            )
        vector = len(info.shape) == 1
        blocks = Blocks.F32 if vector else STORED[info.dtype]
        rows = 1 if vector else info.shape[0]
        width = info.shape[-1] * gguf.GGML_QUANT_SIZES[blocks][1]

        def read() -> np.ndarray:
            with open_tensors(info.file) as file:
                tensor = file.get_tensor(info.name)
            order = self._rows(key.rpartition(".")[0], info.shape[0])
            tensor = tensor if order is None else tensor[order]
            tensor = tensor.float() if vector else tensor
            return tensor.contiguous().view(torch.uint8).numpy().reshape(rows, width)

        return _Tensor(self._name(key), blocks, (rows, width), read)

    def _name(self, key: str) -> str:
        name = self.names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BadInputError(f"{self.checkpoint.path} has the tensor {key}, which llama.cpp has no name for.")
        return name

    def _rows(self, linear: str, n_rows: int) -> torch.Tensor | None:
        """The order of rows that puts the two halves of each rotary pair side by side; None to leave them."""
        heads = {"q_proj": self.shape.heads, "k_proj": self.shape.kv_heads}.get(linear.rpartition(".")[2])
        if heads is None or not self.family.side_by_side:
            return None
        if n_rows != heads * self.shape.head_dim:
            raise BadInputError(
                f"{linear} has {n_rows} outputs, where config.json in {self.checkpoint.path} says {heads} heads of "
                f"{self.shape.head_dim}; download the model again."
            )
        return torch.arange(n_rows).view(heads, 2, -1).transpose(1, 2).flatten()


def _write_header(writer: gguf.GGUFWriter, tensors: list[_Tensor], source: Path) -> None:
    """Everything but the tensors' bytes; `BadInputError` for metadata that the file cannot hold."""
    kinds = Counter(tensor.blocks.name for tensor in tensors if tensor.linear)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kinds.most_common(1)[0][0]}"])
    for tensor in tensors:
        rows, row = tensor.shape
        vector = tensor.blocks is Blocks.F32 and rows == 1
        shape = (row,) if vector else (rows, row)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), rows * row, raw_dtype=tensor.blocks)
    writer.write_header_to_file()
    try:
        writer.write_kv_data_to_file()
    except (struct.error, ValueError, TypeError, OverflowError) as error:
        why = last_clause(error)
        raise BadInputError(f"A value in the config or tokenizer of {source} fits into no GGUF file: {why}") from error
    writer.write_ti_data_to_file()


def _write_tensors(writer: gguf.GGUFWriter, tensors: list[_Tensor], progress: Progress) -> None:
    for done, tensor in enumerate(tensors):
        progress("writing", done, len(tensors))
        writer.write_tensor_data(tensor.read())


def _verify(model: _Model, file: Path, tensors: list[_Tensor], progress: Progress) -> None:
    """Every tensor of the file reads back as what was meant."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for done, tensor in enumerate(tensors):
        progress("verifying", done, len(tensors))
        written = found[tensor.name]
        if tensor.linear is None:
            same = np.array_equal(written.data.view(np.uint8).reshape(tensor.shape), tensor.read())
        else:
            weight = model.weight(tensor.linear)
            values = torch.from_numpy(gguf.quants.dequantize(written.data, tensor.blocks).copy())
            difference = (values - dequantize(weight)).abs()
            same = bool((difference <= worst_error(weight, tensor.blocks)).all())
        if not same:
            raise VerificationError(f"{tensor.name} of {file.name} reads back differently; please report this.")
