"""`chat`: one answer with `--prompt`, else a conversation line by line.

The answer alone goes to stdout, figures to stderr; control characters in it never reach the terminal.
"""

from __future__ import annotations

import argparse
import sys

from awq_engine.commands.console import note
from awq_engine.decoding import prepare_decoding
from awq_engine.errors import BadInputError, ExitCode, UsageError
from awq_engine.format import duration
from awq_engine.generate import PREFILL_CHUNK, GenerationStats, PromptProgress, generate
from awq_engine.models import resolve_model
from awq_engine.prompts import Message
from awq_engine.runtime import LoadedModel, load_model
from awq_engine.sampling_settings import Sampling
from awq_engine.sanitize import one_line, plain


def chat(args: argparse.Namespace) -> int:
    """Answer one prompt, or talk until the input ends."""
    sampling = Sampling(
        max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed, top_k=args.top_k,
        min_p=args.min_p, repetition_penalty=args.repetition_penalty, stop=tuple(args.stop),
    )  # fmt: skip
    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = _read_prompt()
    loaded = load_model(resolve_model(args.model).path, backend=args.backend, device=args.device)
    loaded = prepare_decoding(loaded, quick_head=args.quick_head, kv_cache=args.kv_cache)
    note(introduce(loaded))
    for sentence in loaded.notes:
        note(one_line(sentence))
    messages: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    if prompt is None:
        _converse(loaded, messages, sampling)
    else:
        answer(loaded, [*messages, {"role": "user", "content": prompt}], sampling)
    return ExitCode.OK


def answer(loaded: LoadedModel, messages: list[Message], sampling: Sampling) -> str:
    """Stream one answer to stdout and its figures to stderr; returns the answer."""
    pieces: list[str] = []
    for piece in generate(loaded, messages, sampling):
        if isinstance(piece, PromptProgress):
            _show_progress(piece)
        elif isinstance(piece, GenerationStats):
            print(flush=True)
            note(describe(piece))
        else:
            pieces.append(piece)
            print(plain(piece), end="", flush=True)
    return "".join(pieces)


def _show_progress(progress: PromptProgress) -> None:
    """On a terminal, and where it takes more than one step: one line that is gone when the answer begins."""
    if sys.stderr.isatty() and progress.total > PREFILL_CHUNK:
        line = (
            f"reading the prompt: {progress.done} of {progress.total} tokens" if progress.done < progress.total else ""
        )
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def introduce(loaded: LoadedModel) -> str:
    """One line on what answers, with which backend and which decoder."""
    backend = f"{loaded.backend} on {loaded.device} ({loaded.reason})"
    return one_line(f"{loaded.path.name}: {backend}, {loaded.bits_per_weight:.2f} bits, {loaded.decoding}")


def describe(stats: GenerationStats) -> str:
    """The figures of one answer."""
    context = f"{stats.context_used}/{stats.context_length}" if stats.context_length else str(stats.context_used)
    template = "" if stats.used_template else ", no chat template: the text was continued"
    return (
        f"[{stats.new_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, first after "
        f"{1000 * stats.seconds_to_first_token:.0f} ms, {duration(stats.seconds)}, context {context}, "
        f"{stats.finish_reason}, seed {stats.seed}{template}]"
    )


def _read_prompt() -> str:
    try:
        prompt = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise BadInputError(f"The prompt on standard input is not text in {error.encoding}.") from error
    if not prompt:
        raise UsageError("There is no prompt: give --prompt TEXT, or text on standard input.")
    return prompt


def _converse(loaded: LoadedModel, messages: list[Message], sampling: Sampling) -> None:
    """Read lines until ctrl-d; ctrl-c stops an answer and keeps what was said."""
    note("Type a line and press enter; ctrl-c stops an answer, ctrl-d ends.")
    while (line := _read_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        try:
            messages.append({"role": "assistant", "content": answer(loaded, messages, sampling)})
        except KeyboardInterrupt:
            print(flush=True)
            messages.pop()


def _read_line() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print(flush=True)
        return None
