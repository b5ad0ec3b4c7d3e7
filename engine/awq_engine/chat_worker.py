"""A process that holds one model and answers: `python -m awq_engine.chat_worker MODEL [OPTION ...]`.

The app (or any program) starts it with pipes and speaks JSON, one object a line, UTF-8, each way. It dies with its
parent: the end of its standard input ends it at once. Only protocol lines ever reach its standard output; whatever
libraries print goes to standard error, which the parent should send to a file.

MODEL is a folder, a run id or a Hub id; the options are `--backend B`, `--device D`, `--quick-head` and
`--kv-cache float|int8`. First the worker loads it and says `ready`; requests may come before that.

Worker to parent:

    {"type": "loading", "message": "fetching ...", "done": bytes, "total": bytes}       while a model is downloaded
    {"type": "ready", "model": str, "path": str, "backend": "triton"|"cpu"|"reference"|"torch", "reason": str,
     "device": str, "dtype": str, "context_length": int|null, "bits_per_weight": float, "quantized": int,
     "decoding": str, "kv_cache": "float"|"int8", "has_chat_template": bool, "notes": [str, ...]}
    {"type": "prompt", "id": ID, "done": int, "total": int}     tokens of the prompt known, after each chunk; at
                                                                first those that were read for the request before
    {"type": "text", "id": ID, "text": str}             the next piece, whole characters, at most about 20 a second
    {"type": "done", "id": ID, "prompt_tokens": int, "known_tokens": int, "new_tokens": int, "tokens_per_second": float,
     "seconds_to_first_token": float, "seconds": float, "context_used": int, "context_length": int|null,
     "finish_reason": "stop"|"length"|"context"|"cancelled", "seed": int, "used_template": bool}
    {"type": "scores", "id": ID, "tokens": [SCORE, ...]}        the next tokens of a scored answer, in order
    {"type": "scored", "id": ID, "prompt_tokens": int, "scored_tokens": int, "seconds": float,
     "finish_reason": "complete"|"cancelled"}
    {"type": "error", "id": ID|null, "message": str, "exit_code": int, "fatal": bool}

Parent to worker:

    {"type": "chat", "id": ID, "messages": [{"role": "system"|"user"|"assistant", "content": str}, ...],
     "max_tokens": int = 512, "temperature": float = 0.7, "top_p": float = 0.95, "seed": int|null = null,
     "top_k": int = 0, "min_p": float = 0, "repetition_penalty": float = 1, "stop": [str, ...] = []}
    {"type": "score", "id": ID, "messages": [as above], "answer": str}
    {"type": "cancel", "id": ID}            without an id: everything asked so far

ID is any string or integer the parent chooses; use each once. Requests are answered one after the other, in order.
A `chat` gets `prompt` messages, then any number of `text`, and exactly one `done` or `error`; what each sampling field
means and may be, `sampling.py` says. Of a stop string nothing is ever sent, and the answer it ends has `finish_reason`
"stop". A cancel is noticed between two tokens (in a long prompt: between two chunks of it) and answered by `done` with
`finish_reason` "cancelled", also for a request still waiting in line. A cancel of an id that is not known or already
answered does nothing. `decoding` says in words whether the model runs on our own decoder or on transformers' forward
pass, and why, `kv_cache` what keys and values are kept in: on the latter in floats, whatever was asked for. An error
that is not fatal leaves the worker ready for the next request; after a fatal one it exits with `exit_code`, as
documented in `errors.py`.

A `score` gets `prompt` messages, then `scores` until every token of the answer had one, and exactly one `scored` or
`error`. It says how likely the model finds `answer` as the reply to `messages`, whoever wrote it:

    SCORE = {"id": int, "text": str, "logprob": float, "rank": int, "best": str, "top": [[int, float], ...],
             "rest": float}

the token and the text it adds (all texts joined are the answer), the natural logarithm of its probability, its rank (1
for the likeliest), the likeliest token as text, ids and log-probabilities of the 32 likeliest, and the probability of
all others together. To compare two models send both the same `score`: their tokens are the same as far as their
tokenizers are, and `token_scores.divergence` is their KL divergence at one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, BinaryIO

from awq_engine.chat_requests import Inbox, Request, Wire, exit_code, read_requests
from awq_engine.detached import NICENESS
from awq_engine.errors import ResourceError

if TYPE_CHECKING:
    from awq_engine.generate import GenerationStats, PromptProgress
    from awq_engine.runtime import LoadedModel

SECONDS_BETWEEN_TEXTS = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model, then answer until standard input ends; returns the exit code when loading fails."""
    options = _parse(arguments)
    wire = Wire(_take_stdout())
    inbox = Inbox()
    threading.Thread(target=read_requests, args=(sys.stdin.buffer, inbox, wire), daemon=True).start()
    try:
        loaded = _load(options, wire)
        while True:
            answer(loaded, inbox.take(), inbox, wire)
    except Exception as error:
        wire.send_error(None, error, fatal=True)
        return int(exit_code(error))


def answer(loaded: LoadedModel, request: Request, inbox: Inbox, wire: Wire) -> None:
    """Send everything that one request asks for; what goes wrong is sent as well.

    The id is given up before the last message: whoever reads that may use it again.
    """
    try:
        if request.answer is None:
            _chat(loaded, request, inbox, wire)
        else:
            _score(loaded, request, request.answer, inbox, wire)
    except Exception as error:
        inbox.close(request.id)
        wire.send_error(request.id, _named(error))


def _chat(loaded: LoadedModel, request: Request, inbox: Inbox, wire: Wire) -> None:
    from awq_engine.generate import PromptProgress, generate
    from awq_engine.sampling_settings import Sampling

    sampling = Sampling(**request.sampling)
    pieces = generate(loaded, request.messages, sampling, lambda: inbox.is_cancelled(request.id))
    for piece in batched(pieces):
        if isinstance(piece, str):
            wire.send("text", id=request.id, text=piece)
        elif isinstance(piece, PromptProgress):
            wire.send("prompt", id=request.id, **asdict(piece))
        else:
            inbox.close(request.id)
            wire.send("done", id=request.id, **asdict(piece))


def _score(loaded: LoadedModel, request: Request, text: str, inbox: Inbox, wire: Wire) -> None:
    from awq_engine.generate import PromptProgress
    from awq_engine.score import score

    for part in score(loaded, request.messages, text, lambda: inbox.is_cancelled(request.id)):
        if isinstance(part, list):
            wire.send("scores", id=request.id, tokens=[asdict(token) for token in part])
        elif isinstance(part, PromptProgress):
            wire.send("prompt", id=request.id, **asdict(part))
        else:
            inbox.close(request.id)
            wire.send("scored", id=request.id, **asdict(part))


def batched(
    pieces: Iterator[PromptProgress | str | GenerationStats],
) -> Iterator[PromptProgress | str | GenerationStats]:
    """The same with texts joined, so that they come at most every `SECONDS_BETWEEN_TEXTS`; the first comes at once."""
    held, due = "", 0.0
    for piece in pieces:
        now = time.monotonic()
        if isinstance(piece, str):
            held += piece
        if held and (now >= due or not isinstance(piece, str)):
            yield held
            held, due = "", now + SECONDS_BETWEEN_TEXTS
        if not isinstance(piece, str):
            yield piece


def _named(error: Exception) -> Exception:
    """Running out of memory as the kind of error it is."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ResourceError("The device ran out of memory while answering; use a shorter conversation.")
    return error


def _load(options: argparse.Namespace, wire: Wire) -> LoadedModel:
    from awq_engine.checkpoint import read_checkpoint
    from awq_engine.models import resolve_model

    def on_progress(done: int, total: int, what: str) -> None:
        wire.send("loading", message=what, done=done, total=total)

    resolved = resolve_model(options.model, on_progress)
    read_checkpoint(resolved.path)  # torch takes seconds to import: a folder without a model is told before
    from awq_engine.decoding import prepare_decoding
    from awq_engine.prompts import has_chat_template
    from awq_engine.runtime import load_model

    try:
        loaded = load_model(resolved.path, backend=options.backend, device=options.device)
        loaded = prepare_decoding(loaded, quick_head=options.quick_head, kv_cache=options.kv_cache)
    except Exception as error:
        raise _named(error) from error
    wire.send(
        "ready",
        model=resolved.name,
        path=str(resolved.path),
        backend=loaded.backend,
        reason=loaded.reason,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        context_length=loaded.context_length,
        bits_per_weight=loaded.bits_per_weight,
        quantized=loaded.quantized,
        decoding=loaded.decoding,
        kv_cache=loaded.kv_cache,
        has_chat_template=has_chat_template(loaded.tokenizer),
        notes=list(loaded.notes),
    )
    return loaded


def _take_stdout() -> BinaryIO:
    """Keep standard output for the protocol; from here on file descriptor 1 is standard error, for everybody."""
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m awq_engine.chat_worker", description="Hold one model and answer.")
    parser.add_argument("model", help="a folder, a run id or a Hub id")
    parser.add_argument("--backend", default="auto", choices=["auto", "triton", "cpu", "reference"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--quick-head", action="store_true", help="read an output head in floats in 4 bits first")
    parser.add_argument(
        "--kv-cache", choices=["float", "int8"], default="float", help="what keys and values are kept in"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.nice(NICENESS)
    code = main()
    sys.stderr.flush()
    os._exit(code)  # an ordinary exit aborts on the lock of standard input, which the reading thread holds
