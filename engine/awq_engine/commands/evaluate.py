"""`eval`: perplexity on held-out text and, with `--against`, the distance to the original."""

from __future__ import annotations

import argparse

from awq_engine.commands.console import note, result, result_json
from awq_engine.errors import ExitCode
from awq_engine.evaluate import EvalResult, OnProgress, evaluate
from awq_engine.models import resolve_model
from awq_engine.sanitize import one_line
from awq_engine.text_sources import absolute_spec


def evaluate_model(args: argparse.Namespace) -> int:
    """Evaluate and print one result."""
    found = evaluate(
        resolve_model(args.model).path,
        against=resolve_model(args.against).path if args.against else None,
        text=absolute_spec(args.text), seq_len=args.seq_len, max_tokens=args.max_tokens, device=args.device,
        backend=args.backend, on_progress=window_counter(),
    )  # fmt: skip
    if args.json:
        result_json(found.to_json())
    else:
        result(describe(found))
    return ExitCode.OK


def window_counter(parts: int = 4) -> OnProgress:
    """A progress callback that speaks `parts` times in all, on stderr."""

    def count(done: int, total: int) -> None:
        if done * parts // total > (done - 1) * parts // total and done < total:
            note(f"evaluated {done} of {total} windows")

    return count


def describe(found: EvalResult) -> str:
    """An evaluation for people."""
    error = f" ± {found.nll_error:.4f}" if found.nll_error is not None else ""
    lines = [
        f"text        {one_line(found.text)}, {found.tokens} tokens in windows of {found.seq_len}",
        f"perplexity  {_perplexity(found.perplexity)}",
        f"nll         {found.nll:.5f}{error} nats per token",
    ]
    if found.kl is not None and found.nll_original is not None and found.top1_agreement is not None:
        kl_error = f" ± {found.kl_error:.6f}" if found.kl_error is not None else ""
        lines += [
            f"original    perplexity {_perplexity(found.perplexity_original)}, nll {found.nll_original:.5f}",
            f"kl          {found.kl:.6f}{kl_error} nats per token",
            f"same top-1  {100 * found.top1_agreement:.2f} %",
        ]
    return "\n".join(lines)


def _perplexity(value: float | None) -> str:
    return "too large" if value is None else f"{value:.4f}"
