"""Run by the Python of another environment: a model folder quantized by somebody else's program, with its defaults.

python write_model.py gptq|gptq_act_order|awq|autoawq MODEL OUT
"""

from __future__ import annotations

import sys

import torch

SEQUENCES = [torch.randint(10, 2000, (128,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(8)]


def with_gptqmodel(kind: str, folder: str, out: str) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    method = {"quant_method": METHOD.AWQ, "format": FORMAT.GEMM} if kind == "awq" else {"desc_act": "act" in kind}
    config = QuantizeConfig(bits=4, group_size=32, sym=kind == "gptq_act_order", device="cpu", **method)
    model = GPTQModel.load(folder, config)
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in SEQUENCES], batch_size=4)
    model.save(out)


def with_autoawq(folder: str, out: str) -> None:
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    model = AutoAWQForCausalLM.from_pretrained(folder, device_map=None, torch_dtype=torch.float16, safetensors=True)
    config = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.quantize(tokenizer, quant_config=config, calib_data=SEQUENCES, max_calib_seq_len=128)
    model.save_quantized(out)


if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    with_autoawq(source, target) if kind == "autoawq" else with_gptqmodel(kind, source, target)
