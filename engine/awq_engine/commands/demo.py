"""`demo`: quantize the bundled model, measure what it lost, and let it say something. No network is used."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from awq_engine.commands.console import note, result, result_json, table
from awq_engine.commands.following import attend
from awq_engine.demo import EVALUATION_TEXT, MODEL, SEQ_LEN, start_demo
from awq_engine.errors import ExitCode
from awq_engine.format import duration, loss, size, times
from awq_engine.report import RoleSummary, layer_rows, summarize_roles
from awq_engine.sanitize import plain

PROMPT = "Tell me a story about a dragon."
REPLY_TOKENS = 240


def run_demo(args: argparse.Namespace) -> int:
    """Run everything and print one summary."""
    from awq_engine.memory import peak_host_bytes

    started = time.monotonic()
    run, engine = start_demo()
    state = attend(run, engine)
    data: dict[str, Any] = dict(state.result or {})
    output = Path(data["output"])
    roles = summarize_roles(layer_rows(state))
    data["types"] = [dataclasses.asdict(role) for role in roles]
    data["eval"] = _evaluate(output)
    data["chat"] = _chat(output)
    data["demo_seconds"] = round(time.monotonic() - started, 2)
    data["peak_host_bytes"] = max(data["peak_host_bytes"], peak_host_bytes())
    if args.json:
        result_json(data)
    else:
        result(describe(data, roles))
    return ExitCode.OK


def _evaluate(output: Path) -> dict[str, Any]:
    from awq_engine.commands.evaluate import window_counter
    from awq_engine.evaluate import evaluate

    note("comparing the quantized model with the original on held-out text")
    text, progress = str(EVALUATION_TEXT), window_counter(2)
    return evaluate(output, against=MODEL, text=text, seq_len=SEQ_LEN, on_progress=progress).to_json()


def _chat(output: Path) -> dict[str, Any]:
    from awq_engine.decoding import prepare_decoding
    from awq_engine.generate import GenerationStats, generate
    from awq_engine.runtime import load_model
    from awq_engine.sampling_settings import Sampling

    loaded = prepare_decoding(load_model(output))
    note(f"chatting with the {loaded.backend} backend: {loaded.reason}")
    pieces = list(generate(loaded, [{"role": "user", "content": PROMPT}], Sampling(REPLY_TOKENS, temperature=0.0)))
    stats = next(piece for piece in pieces if isinstance(piece, GenerationStats))
    return {
        "prompt": PROMPT, "reply": "".join(piece for piece in pieces if isinstance(piece, str)),
        "backend": loaded.backend, "tokens_per_second": stats.tokens_per_second, "new_tokens": stats.new_tokens,
    }  # fmt: skip


def describe(data: dict[str, Any], roles: list[RoleSummary]) -> str:
    """The summary for people."""
    found, chat = data["eval"], data["chat"]
    header = ("layer type", "layers", "rounding", "AWQ", "final", "final/rounding")
    rows = [
        (x.role, str(x.layers), *map(loss, (x.loss_rounding, x.loss_awq, x.loss_final)), times(x.loss_ratio))
        for x in roles
    ]
    return "\n".join(
        [
            "Output error by layer type (mean squared error)",
            table(header, rows, right=" ".join(header[1:])),
            "",
            f"size        {size(data['bytes_before'])} -> {size(data['bytes_after'])}, "
            f"{data['bits_per_weight']:.2f} bits per quantized weight",
            f"perplexity  {found['perplexity_original']:.2f} -> {found['perplexity']:.2f} "
            f"on {found['tokens']} tokens of held-out stories",
            f"KL          {found['kl']:.4f} nats per token, same top-1 {100 * found['top1_agreement']:.1f} %",
            f"chat        {chat['prompt']}",
            *(f"            {line}" for line in plain(chat["reply"]).strip().splitlines()),
            f"            {chat['tokens_per_second']:.0f} tokens/s ({chat['backend']} backend)",
            f"took        {duration(data['demo_seconds'])}, of it {duration(data['seconds'])} quantizing; "
            f"peak memory {size(data['peak_host_bytes'])}",
            f"output      {data['output']}",
            f"            try: awq-tui chat {data['run_id']}",
        ]
    )
