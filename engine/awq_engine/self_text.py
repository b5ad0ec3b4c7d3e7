"""Calibration text that the model writes itself (`--calibration self`).

What a model says is in its own domain by construction, needs no data and no network, and works for any language it
knows (self-calibration, arXiv:2410.17170; LLM-QAT, arXiv:2305.17888). Every sequence is sampled at temperature 1 from
the begin-of-text token; a model with a chat template writes every other one as the answer to a question of the built-in
dialogues, in that template. After an end-of-text token a new text begins in the same sequence. One seed gives the same
tokens on the same machine, and a run keeps them. The whole model must fit into memory, which nothing else here asks.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from awq_engine.builtin_text import DATA, read_dialogues
from awq_engine.checkpoint import read_checkpoint
from awq_engine.doctor import host_memory
from awq_engine.errors import AwqError, ResourceError, UsageError
from awq_engine.format import size
from awq_engine.prompts import has_chat_template
from awq_engine.runtime import LoadedModel, load_model, pick_device

BATCH = 32
"""Sequences written at once."""


@torch.inference_mode()
def write_windows(
    folder: Path, device: str, samples: int, seq_len: int, seed: int, max_memory: int = 0
) -> torch.Tensor:
    """Have the model in `folder` write `samples` sequences, int64 [samples, seq_len].

    Args:
        max_memory: bytes the model may take on the host; 0 for what is free.
    Raises:
        ResourceError: the model does not fit into memory at once.
        UsageError: it has neither a begin-of-text nor an end-of-text token to start from.
    """
    _check_memory(folder, pick_device(device), max_memory)
    loaded = load_model(folder, device=device)
    starts = list(islice(cycle(_starts(loaded.tokenizer, seq_len)), samples))
    generator = torch.Generator().manual_seed(seed)
    batches = [starts[at : at + BATCH] for at in range(0, samples, BATCH)]
    return torch.cat([_write_batch(loaded, batch, seq_len, generator) for batch in batches])


def _check_memory(folder: Path, device: torch.device, max_memory: int) -> None:
    checkpoint = read_checkpoint(folder)
    if device.type == "cpu":
        needed, free = 4 * checkpoint.parameters, max_memory or host_memory()[1]  # it is loaded in float32 there
    else:
        needed, free = checkpoint.nbytes, torch.get_device_module(device).mem_get_info(device)[0]
    if free is not None and needed > free:
        raise ResourceError(
            f"For --calibration self the whole model must be in memory: {size(needed)}, and {size(free)} may be used; "
            "use --calibration builtin."
        )


def _starts(tokenizer: Any, seq_len: int) -> list[list[int]]:
    """What sequences begin with, in turns."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise UsageError("This model's tokenizer has no token that begins a text; use --calibration builtin.")
    if not has_chat_template(tokenizer):
        return [[first]]
    questions = [row["messages"][:1] for row in read_dialogues(DATA / "calibration" / "dialogues.jsonl")]
    asked = [_asked(tokenizer, question) for question in questions if question[0]["role"] == "user"]
    return [start for prompt in asked if len(prompt) < seq_len for start in ([first], prompt)] or [[first]]


def _asked(tokenizer: Any, question: list[dict[str, str]]) -> list[int]:
    encoded = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def _write_batch(loaded: LoadedModel, starts: list[list[int]], length: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [len(starts), length]: what each start goes on with."""
    tokenizer: Any = loaded.tokenizer
    ids = torch.zeros(len(starts), length, dtype=torch.int64)
    given = torch.zeros(len(starts), length, dtype=torch.bool)
    for row, start in enumerate(starts):
        ids[row, : len(start)], given[row, : len(start)] = torch.tensor(start), True
    cache = DynamicCache(config=loaded.model.config)
    for at in range(1, length):
        inputs = ids[:, at - 1 : at].to(loaded.device)
        logits = loaded.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1].float().cpu()
        if logits.isnan().any():
            raise AwqError("The model computed no numbers (NaN) while writing its calibration text; use builtin.")
        drawn = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)[:, 0]
        if tokenizer.bos_token_id is not None:
            drawn[ids[:, at - 1] == tokenizer.eos_token_id] = tokenizer.bos_token_id
        ids[:, at] = torch.where(given[:, at], ids[:, at], drawn)
    return ids
