"""Run by the Python of another environment: what a loader of somebody else makes of a model folder.

    python read_model.py gptqmodel|transformers|autoawq MODEL OUT.safetensors

OUT gets the model's `logits` for the tokens 3, 4, ... 34, and of every quantized linear its weight [out, in], taken by
running the linear on unit vectors: a product with 1 and sums with 0 are exact, so this is what it computes with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

IDS = torch.arange(3, 35).view(1, -1)


def method_of(folder: str) -> str:
    return json.loads((Path(folder) / "config.json").read_text())["quantization_config"]["quant_method"]


def with_gptqmodel(folder: str) -> torch.nn.Module:
    from gptqmodel import BACKEND, GPTQModel

    plain = {"awq": BACKEND.AWQ_TORCH, "gptq": BACKEND.GPTQ_TORCH}[method_of(folder)]
    return GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=plain).model


def with_transformers(folder: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu")


def with_autoawq(folder: str) -> torch.nn.Module:
    import awq.models.base
    import awq.modules.linear.gemm
    from awq import AutoAWQForCausalLM

    # on a CPU it wants a package of Intel's; told of a GPU, it takes its own class, which computes with plain torch
    awq.models.base.get_best_device = lambda: "cuda:0"
    awq.modules.linear.gemm.TRITON_AVAILABLE = False
    return AutoAWQForCausalLM.from_quantized(folder, fuse_layers=False, device_map={"": "cpu"}).model


def main(loader: str, folder: str, out: str) -> None:
    model = globals()[f"with_{loader}"](folder).eval()
    found = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "qweight") or hasattr(module, "weight_packed"):
                units = torch.eye(module.in_features, dtype=torch.float16)
                bias = 0 if getattr(module, "bias", None) is None else module.bias.float()
                found[f"{name}.weight"] = (module(units).view(module.in_features, -1).float() - bias).T.contiguous()
        found["logits"] = model(IDS, use_cache=False).logits.float()
    print(type(model).__name__, sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}))
    save_file(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
