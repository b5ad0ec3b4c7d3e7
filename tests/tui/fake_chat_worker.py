"""A chat worker without a model: speaks the protocol of `awq_engine.chat_worker`, answers what the question asks for.

    python fake_chat_worker.py MODE MODEL [--kv-cache int8]

MODE `plain` has no chat template, `broken` fails to load, `crash` dies at the first question, `other` shouts its last
word; anything else is normal.
A question is answered with its own text after `say `, slowly and without end after `count`, with an error after `fail`.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

STATS = {
    "prompt_tokens": 12, "new_tokens": 7, "tokens_per_second": 31.5, "seconds_to_first_token": 0.38, "seconds": 0.6,
    "context_used": 19, "context_length": 4096, "seed": 5, "used_template": True,
}  # fmt: skip


def send(kind: str, **fields: Any) -> None:
    print(json.dumps({"type": kind, **fields}), flush=True)


def pieces(question: dict[str, Any], mode: str) -> list[str]:
    """What to say, in small pieces."""
    last = question["messages"][-1]["content"]
    if last == "settings":
        text = json.dumps({key: value for key, value in question.items() if key not in ("type", "id", "messages")})
    elif last == "roles":
        text = " ".join(message["role"] for message in question["messages"])
    elif last == "count":
        return [f"{number} " for number in range(10_000)]
    else:
        text = last.removeprefix("say ")
    if mode == "other":
        head, space, last = text.rpartition(" ")
        text = head + space + last.upper()
    return [text[start : start + 3] for start in range(0, len(text), 3)]


def answer(question: dict[str, Any], cancelled: threading.Event, mode: str) -> None:
    last = question["messages"][-1]["content"]
    if last.startswith("fail"):
        send("error", id=question["id"], message="The conversation [/x] does not fit.", exit_code=2, fatal=False)
        return
    for piece in pieces(question, mode):
        if cancelled.is_set():
            break
        send("text", id=question["id"], text=piece)
        time.sleep(0.02 if last == "count" else 0.001)
    reason = "cancelled" if cancelled.is_set() else "stop"
    send("done", id=question["id"], finish_reason=reason, **STATS)


def score(question: dict[str, Any], mode: str) -> None:
    """A word is a token, and the likeliest one; to the `other` model the last word is a surprise."""
    words = question["answer"].split(" ")
    tokens = []
    for number, word in enumerate(words):
        surprised = mode == "other" and number == len(words) - 1
        top = [[7, -0.36], [number, -1.2]] if surprised else [[number, -0.22], [7, -1.61]]
        text = word if number == 0 else f" {word}"
        tokens.append(
            {"id": number, "text": text, "logprob": -0.2, "rank": 1, "best": text, "top": top, "rest": 0.0}
        )  # fmt: skip
    send("scores", id=question["id"], tokens=tokens)
    send("scored", id=question["id"], prompt_tokens=3, scored_tokens=len(tokens), seconds=0.1, finish_reason="complete")


def read(questions: queue.SimpleQueue[dict[str, Any] | None], cancelled: threading.Event) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "cancel":
            cancelled.set()
        else:
            questions.put(request)
    questions.put(None)
    cancelled.set()


def main(mode: str, model: str, *options: str) -> int:
    questions: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    cancelled = threading.Event()
    threading.Thread(target=read, args=(questions, cancelled), daemon=True).start()
    print("noise that is no JSON", flush=True)
    if mode == "broken":
        send("error", id=None, message=f"There is no model '{model}'.", exit_code=2, fatal=True)
        return 2
    send(
        "ready", model=model, path=model, backend="reference", reason="this is a test", device="cpu", dtype="float32",
        decoding="our own decoder", kv_cache="int8" if "int8" in options else "float",
        context_length=4096, bits_per_weight=4.16, quantized=28, has_chat_template=mode != "plain", notes=[],
    )  # fmt: skip
    while (question := questions.get()) is not None:
        if mode == "crash":
            print("Traceback: the sky fell [/down]", file=sys.stderr, flush=True)
            return 7
        cancelled.clear()
        if question["type"] == "score":
            score(question, mode)
            continue
        answer(question, cancelled, mode)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
