"""The chat worker as a process: its protocol, line by line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rounded_checkpoint import demo_model

from awq_engine.chat_requests import Inbox, Request, Wire, read_request
from awq_engine.chat_worker import batched
from awq_engine.errors import BadInputError
from awq_engine.token_scores import TokenScore

HELLO = [{"role": "user", "content": "Tell me about a dog."}]


class Worker:
    """A worker process and both ends of its pipes."""

    def __init__(self, *arguments: str, log: Path) -> None:
        command = [sys.executable, "-m", "awq_engine.chat_worker", *arguments]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    def write(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message))

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Messages up to and with the first of one of these kinds."""
        found = [self.receive()]
        while found[-1]["type"] not in kinds:
            found.append(self.receive())
        return found

    def close(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    started = Worker(str(demo_model()), "--device", "cpu", log=tmp_path_factory.mktemp("worker") / "log")
    ready = started.receive()
    assert ready["type"] == "ready"
    assert (ready["backend"], ready["context_length"], ready["has_chat_template"]) == ("torch", 512, True)
    assert (ready["decoding"], ready["kv_cache"]) == ("our own decoder", "float")
    assert (ready["model"], ready["bits_per_weight"], ready["notes"]) == ("demo-model", 16.0, [])
    yield started
    assert started.close() == 0, "the end of standard input is a normal end"


def test_an_answer(worker: Worker) -> None:
    worker.send(id="first", type="chat", messages=HELLO, max_tokens=20, temperature=0)
    begun, read, *texts, done = worker.until("done", "error")
    assert {(step["type"], step["id"], step["total"]) for step in (begun, read)} == {("prompt", "first", read["done"])}
    assert (begun["done"], read["done"]) == (0, done["prompt_tokens"])
    assert texts
    assert {(text["type"], text["id"]) for text in texts} == {("text", "first")}
    assert (done["type"], done["id"], done["new_tokens"], done["finish_reason"]) == ("done", "first", 20, "length")
    assert "".join(text["text"] for text in texts).strip()


def test_cancelling_while_it_answers(worker: Worker) -> None:
    worker.send(id=2, type="chat", messages=HELLO, max_tokens=480, temperature=2.0, top_p=1.0, seed=1)
    worker.until("text")
    worker.send(type="cancel", id=2)
    done = worker.until("done", "error")[-1]
    assert (done["id"], done["finish_reason"]) == (2, "cancelled")
    assert done["new_tokens"] < 480


def test_cancelling_everything_also_ends_what_waits(worker: Worker) -> None:
    for identity in ("a", "b"):
        worker.send(id=identity, type="chat", messages=HELLO, max_tokens=480, temperature=2.0, top_p=1.0, seed=1)
    worker.send(type="cancel")
    first, second = worker.until("done")[-1], worker.until("done")[-1]
    assert [(d["id"], d["finish_reason"]) for d in (first, second)] == [("a", "cancelled"), ("b", "cancelled")]
    assert second["new_tokens"] == 0


def test_every_way_to_draw_and_to_stop_is_taken(worker: Worker) -> None:
    settings = {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 3}
    texts = []
    for number, stop in enumerate([[], [" the"]]):
        worker.send(id=f"drawn {number}", type="chat", messages=HELLO, max_tokens=60, stop=stop, **settings)
        *messages, done = worker.until("done", "error")
        texts.append("".join(message["text"] for message in messages if message["type"] == "text"))
    assert texts[1] == texts[0].partition(" the")[0] != texts[0]
    assert done["finish_reason"] == "stop"


def test_an_answer_is_scored(worker: Worker) -> None:
    """By any model, also one that did not write it: this is what two models are compared by."""
    answer = "Once upon a time there was a dog named Max."
    worker.send(id="s", type="score", messages=HELLO, answer=answer)
    *messages, end = worker.until("scored", "error")
    kinds = [message["type"] for message in messages]
    assert set(kinds) == {"prompt", "scores"}
    tokens = [TokenScore.from_json(token) for m in messages if m["type"] == "scores" for token in m["tokens"]]
    assert "".join(token.text for token in tokens) == answer
    assert (end["id"], end["scored_tokens"], end["finish_reason"]) == ("s", len(tokens), "complete")


def test_mistakes_are_answered_and_survived(worker: Worker) -> None:
    for line, words in [
        ("{", "not JSON"),
        ("[1]", "chat, score or cancel"),
        ('{"type": "score", "id": 5, "messages": []}', "needs an answer"),
        ('{"type": "score", "id": 5, "messages": [], "answer": "x"}', "conversation is empty"),
        ('{"type": "chat", "id": true, "messages": []}', "needs an id"),
        ('{"type": "chat", "id": 5, "messages": [], "stop": "x"}', "stop must be a list"),
        ('{"type": "chat", "id": 5, "messages": [], "top_k": 1.5}', "top_k is 1.5"),
        (json.dumps({"type": "chat", "id": 6, "messages": HELLO, "stop": [""]}), "none may be empty"),
        ('{"type": "chat", "messages": []}', "needs an id"),
        ('{"type": "chat", "id": 5, "messages": "hi"}', "messages must be a list"),
        ('{"type": "chat", "id": 5, "messages": [], "max_tokens": Infinity}', "max_tokens is inf"),
        ('{"type": "chat", "id": 5, "messages": []}', "conversation is empty"),
        (json.dumps({"type": "chat", "id": 6, "messages": HELLO, "top_p": 7}), "top_p is 7"),
        (json.dumps({"type": "score", "id": 6, "messages": HELLO, "answer": "a\ud83d"}), "half a character (U+D83D)"),
        (
            json.dumps({"type": "chat", "id": 6, "messages": [{"role": "user", "content": "\udcff"}]}),
            "half a character",
        ),
    ]:
        worker.write(line)
        error = worker.receive()
        assert (error["type"], error["exit_code"], error["fatal"]) == ("error", 2, False)
        assert words in error["message"]
    worker.send(id=7, type="chat", messages=HELLO, max_tokens=1)
    assert worker.until("done", "error")[-1]["type"] == "done"


def test_a_model_that_is_not_there_is_fatal(tmp_path: Path) -> None:
    missing = Worker(str(tmp_path / "nothing"), log=tmp_path / "log")
    error = missing.receive()
    assert (error["type"], error["id"], error["exit_code"], error["fatal"]) == ("error", None, 2, True)
    assert "nothing is not a folder" in error["message"]
    assert missing.process.wait(timeout=60) == 2
    missing.close()


def test_what_libraries_print_stays_off_the_protocol(tmp_path: Path) -> None:
    """Also what C code writes to file descriptor 1."""
    program = (
        "import os, sys; from awq_engine import chat_worker as w\n"
        "wire = w.Wire(w._take_stdout()); print('noise', flush=True); os.write(1, b'more noise')\n"
        "wire.send('text', text='ü')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {"type": "text", "text": "ü"}
    assert "noise" in run.stderr


def test_texts_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comes at once, the others at most every twentieth of a second, the last before the end."""
    clock = iter([0.00, 0.02, 0.04, 0.06, 0.07, 0.08])
    monkeypatch.setattr("awq_engine.chat_worker.time.monotonic", lambda: next(clock))
    stats: Any = object()
    assert list(batched(iter(["a", "b", "c", "d", "e", stats]))) == ["a", "bcd", "e", stats]


def test_an_id_may_not_be_used_twice_at_a_time() -> None:
    inbox = Inbox()
    inbox.put(Request("x", [], {}))
    with pytest.raises(BadInputError, match="in use"):
        inbox.put(Request("x", [], {}))
    inbox.close("x")
    inbox.cancel("x")
    inbox.put(Request("x", [], {}))
    assert not inbox.is_cancelled("x"), "a late cancel of an answered request does nothing"


def test_fields_that_are_null_take_their_defaults() -> None:
    request = read_request({"type": "chat", "id": 1, "messages": HELLO, "seed": None, "temperature": 0})
    assert request.sampling == {"temperature": 0}


def test_a_bug_is_reported_with_its_traceback_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    Wire(stream).send_error(3, ZeroDivisionError("oh"))
    sent = json.loads(stream.getvalue())
    assert sent == {"type": "error", "id": 3, "message": "ZeroDivisionError: oh", "exit_code": 1, "fatal": False}
    assert "ZeroDivisionError" in capsys.readouterr().err
