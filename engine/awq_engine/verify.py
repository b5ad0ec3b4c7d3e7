"""Done means verified: the files just written are read back and must compute what the quantizer had in memory.

The written checkpoint is run block by block, every tensor from the new files and the integers unpacked again, so a
mistake in packing, naming, copying or sharding shows here and not in somebody's server.
"""

from __future__ import annotations

from pathlib import Path

import torch

from awq_engine.capture import capture_inputs, finish_forward
from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.errors import VerificationError
from awq_engine.events import Verified
from awq_engine.formats.stated import read_quantization
from awq_engine.placement import as_floats
from awq_engine.skeleton import Skeleton, build_skeleton
from awq_engine.unpacked import read_dequantized, read_weight

TOLERANCE = 1e-4
"""Largest allowed difference of a logit, relative to the largest logit; equal arithmetic gives 0."""


def verify_output(folder: Path, ids: torch.Tensor, expected: torch.Tensor, device: torch.device) -> Verified:
    """Compare the logits of the checkpoint in `folder` with `expected`.

    Args:
        ids: int64 [1, seq].
        expected: float32 [1, seq, vocabulary], from the quantized model in memory.
    Raises:
        VerificationError: they differ, or are not finite.
    """
    skeleton = quantized_skeleton(read_checkpoint(folder), device)
    probe = capture_inputs(skeleton, [ids])
    for index in range(len(skeleton.blocks)):
        with skeleton.loaded_block(index) as block:
            probe.advance(block, index)
    logits = finish_forward(skeleton, ids, probe.hidden[0])
    difference = float((logits - expected).abs().max())
    limit = TOLERANCE * float(expected.abs().max())
    if not difference <= limit:
        raise VerificationError(
            f"The checkpoint in {folder} does not compute what was quantized: a logit differs by {difference:.3g} "
            f"(allowed {limit:.3g}). It was not published; please report this."
        )
    return Verified(difference, ids.numel())


def quantized_skeleton(checkpoint: Checkpoint, device: torch.device) -> Skeleton:
    """A skeleton whose quantized linears read as dequantized floats."""
    quantization = read_quantization(checkpoint)
    if quantization is None:
        return build_skeleton(checkpoint, str(device))
    packed = set(quantization.linears(checkpoint))
    skeleton = build_skeleton(as_floats(checkpoint, quantization), str(device))

    def unpack(key: str) -> torch.Tensor | None:
        linear = key.removesuffix(".weight")
        if not key.endswith(".weight") or linear not in packed:
            return None
        return read_dequantized(checkpoint, quantization, linear)

    skeleton.unpack = unpack
    head = skeleton.path_of(skeleton.model.get_output_embeddings())
    if (source := skeleton.sources.get(f"{head}.weight")) and (name := source.key.removesuffix(".weight")) in packed:
        skeleton.read_head = lambda: read_weight(checkpoint, quantization, name)
    return skeleton
