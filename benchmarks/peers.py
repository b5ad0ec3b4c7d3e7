"""Other people's 4-bit kernels, called as their own projects call them, where they are installed.

Each maker takes a weight on the GPU and the activations' dtype and gives a call. It raises `ImportError` where the
peer is not installed and `ValueError` where it does not take such a weight.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from awq_engine.formats import awq
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

Call = Callable[[torch.Tensor], torch.Tensor]


def gemlite(weight: IntWeight, dtype: torch.dtype) -> Call:
    """Triton, of dropbox/gemlite."""
    import gemlite as peer  # pyright: ignore[reportMissingImports]

    _check(weight, bits=(2, 4, 8))
    kind = peer.DType.FP16 if dtype == torch.float16 else peer.DType.BF16
    layer = peer.GemLiteLinear(
        weight.bits, weight.group_size, weight.in_features, weight.out_features, input_dtype=kind, output_dtype=kind
    )
    layer.pack(weight.q, weight.scale.to(dtype), weight.zero_point.to(dtype), bias=None)
    return layer


def autoawq(weight: IntWeight, dtype: torch.dtype) -> Call:
    """AutoAWQ's Triton kernel, read from its file: the package itself does not load beside transformers of today."""
    _check(weight)
    if dtype != torch.float16:
        raise ValueError("it computes in float16 only")
    found = importlib.util.find_spec("awq")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'awq'")
    spec = importlib.util.spec_from_file_location("awq_gemm", Path(found.origin).parent / "modules/triton/gemm.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    packed = _packed(weight, dtype)
    return lambda x: module.awq_gemm_triton(x, packed["qweight"], packed["scales"], packed["qzeros"], 8)


def tinygemm(weight: IntWeight, dtype: torch.dtype) -> Call:
    """torch's own: w = (q - 8) * scale + zero, integers in pairs, the even one in the high bits."""
    _check(weight)
    if dtype != torch.bfloat16:
        raise ValueError("it computes in bfloat16 only")
    scale = weight.scale.float()
    zero = (8 - weight.zero_point.float()) * scale
    packed = torch.ops.aten._convert_weight_to_int4pack((weight.q[:, ::2] << 4) | weight.q[:, 1::2], 8)
    scale_and_zero = torch.stack([scale.T, zero.T], dim=2).to(torch.bfloat16).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, weight.group_size, scale_and_zero)


def marlin(weight: IntWeight, dtype: torch.dtype) -> Call:
    """CUDA, as vLLM runs AutoAWQ checkpoints with it."""
    from vllm import _custom_ops as ops  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.layers.quantization.utils import marlin_utils  # pyright: ignore[reportMissingImports]
    from vllm.scalar_type import scalar_types  # pyright: ignore[reportMissingImports]

    _check(weight)
    n, k, device = weight.out_features, weight.in_features, weight.q.device
    packed, none = _packed(weight, dtype), torch.empty(0, dtype=torch.int, device=device)
    options = {
        "weight": ops.awq_marlin_repack(packed["qweight"], size_k=k, size_n=n, num_bits=4),
        "weight_scale": marlin_utils.marlin_permute_scales(
            packed["scales"], size_k=k, size_n=n, group_size=weight.group_size
        ),
        "weight_zp": marlin_utils.awq_to_marlin_zero_points(
            packed["qzeros"], size_k=weight.n_groups, size_n=n, num_bits=4
        ),
        "g_idx": none,
        "g_idx_sort_indices": none,
        "workspace": marlin_utils.marlin_make_workspace_new(device),
        "quant_type": scalar_types.uint4,
        "output_size_per_partition": n,
        "input_size_per_partition": k,
    }
    return lambda x: marlin_utils.apply_awq_marlin_linear(input=x, **options)


def humming(weight: IntWeight, dtype: torch.dtype) -> Call:
    """CUDA, compiled when it is first called, of vllm-project/humming."""
    from humming.layer import HummingLayer  # pyright: ignore[reportMissingImports]

    _check(weight)
    config: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": weight.group_size, "zero_point": True}
    layer = HummingLayer(weight.out_features, weight.in_features, weight_config=config, torch_dtype=dtype).cuda()
    layer.load_from_tensors(_packed(weight, dtype))
    layer.transform()
    return layer


PEERS: dict[str, Callable[[IntWeight, torch.dtype], Call]] = {
    "gemlite": gemlite, "autoawq": autoawq, "tinygemm": tinygemm, "marlin": marlin, "humming": humming
}  # fmt: skip


def _check(weight: IntWeight, bits: tuple[int, ...] = (4,)) -> None:
    if weight.bits not in bits:
        raise ValueError(f"it takes {' or '.join(map(str, bits))} bits, not {weight.bits}")


def _packed(weight: IntWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As AutoAWQ's files have it, on the weight's device: qweight, qzeros, scales in `dtype`."""
    packed = awq.pack(weight, QuantSpec(4, weight.group_size, symmetric=False), "peer")
    moved = {part: tensor.to(weight.q.device) for part, tensor in packed.items()}
    return {**moved, "scales": moved["scales"].to(dtype)}
