"""The app's end of the chat protocol, against a worker without a model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from awq_engine.sampling_settings import Sampling
from awq_tui.chat_client import ChatClient, Done, Failed, Loading, Piece, Ready, Reply, parse_reply
from tests.processes import still_there

FAKE = Path(__file__).with_name("fake_chat_worker.py")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def client_of(mode: str) -> ChatClient:
    return ChatClient("some/model", [sys.executable, str(FAKE), mode])


@pytest.fixture
async def client() -> AsyncIterator[ChatClient]:
    client = client_of("normal")
    await client.start()
    yield client
    await client.close()


async def collect(client: ChatClient, until: type[Reply]) -> list[Reply]:
    found: list[Reply] = []
    async with asyncio.timeout(20):
        async for reply in client.replies():
            found.append(reply)
            if isinstance(reply, until):
                break
    return found


async def test_noise_is_skipped_and_ready_says_what_was_loaded(client: ChatClient) -> None:
    (ready,) = await collect(client, Ready)
    assert isinstance(ready, Ready)
    assert (ready.model, ready.backend, ready.decoding) == ("some/model", "reference", "our own decoder")
    assert ready.kv_cache == "float"


async def test_a_cache_in_bytes_is_asked_for() -> None:
    client = ChatClient("some/model", [sys.executable, str(FAKE), "normal"], kv_cache="int8")
    await client.start()
    (ready,) = await collect(client, Ready)
    await client.close()
    assert isinstance(ready, Ready)
    assert ready.kv_cache == "int8"


async def test_a_reply_arrives_in_pieces_and_ends_with_statistics(client: ChatClient) -> None:
    request = await client.ask(user("say hello there"), Sampling())
    replies = await collect(client, Done)
    text = "".join(reply.text for reply in replies if isinstance(reply, Piece))
    assert text == "hello there"
    assert replies[-1] == Done(request, 12, 7, 31.5, 0.38, 19, 4096, "stop", 5)


async def test_sampling_reaches_the_worker(client: ChatClient) -> None:
    await client.ask(user("settings"), Sampling(temperature=0.0, top_p=0.5, max_tokens=9, seed=3))
    text = "".join(reply.text for reply in await collect(client, Done) if isinstance(reply, Piece))
    expected = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 9, "seed": 3, "top_k": 0, "stop": []}
    assert json.loads(text).items() >= expected.items()


async def test_cancel_ends_a_reply(client: ChatClient) -> None:
    await client.ask(user("count"), Sampling())
    await collect(client, Piece)
    await client.cancel()
    done = (await collect(client, Done))[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == "cancelled"


async def test_a_request_that_fails_leaves_the_worker_alive(client: ChatClient) -> None:
    request = await client.ask(user("fail"), Sampling())
    assert (await collect(client, Failed))[-1] == Failed(request, "The conversation [/x] does not fit.", fatal=False)
    await client.ask(user("say on"), Sampling())
    await collect(client, Done)
    assert client.alive


async def test_a_model_that_cannot_be_loaded_is_one_fatal_sentence() -> None:
    client = client_of("broken")
    await client.start()
    replies = [reply async for reply in client.replies()]
    assert replies == [Failed(None, "There is no model 'some/model'.", fatal=True)]
    await client.close()


async def test_a_crash_tells_the_exit_code_and_the_end_of_the_log() -> None:
    client = client_of("crash")
    await client.start()
    await client.ask(user("say hello"), Sampling())
    last = [reply async for reply in client.replies()][-1]
    assert last == Failed(None, "The chat process ended with exit code 7.\nTraceback: the sky fell [/down]", fatal=True)
    await client.close()
    assert not client.alive


async def test_closing_ends_the_worker_in_the_middle_of_a_reply(client: ChatClient) -> None:
    await client.ask(user("count"), Sampling())
    await collect(client, Piece)
    assert client._process is not None
    async with asyncio.timeout(60):
        await client.close()
    assert client._process.returncode is not None


async def test_a_worker_that_ignores_the_end_of_its_input_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_tui.chat_client.SECONDS_TO_END", 0.1)
    client = ChatClient("m", [sys.executable, "-c", "import time; time.sleep(60)"])
    await client.start()
    await client.close()
    assert client._process is not None
    assert client._process.returncode == -9


def test_the_worker_dies_with_a_killed_app() -> None:
    program = f"""
        import asyncio, sys
        from awq_tui.chat_client import ChatClient, Piece
        from awq_engine.sampling_settings import Sampling
        async def main():
            client = ChatClient("m", [sys.executable, {str(FAKE)!r}, "normal"])
            await client.start()
            await client.ask([{{"role": "user", "content": "count"}}], Sampling())
            async for reply in client.replies():
                if isinstance(reply, Piece):
                    print(client._process.pid, flush=True)
                    await asyncio.sleep(60)
        asyncio.run(main())
    """
    app = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert app.stdout is not None
    worker = int(app.stdout.readline())
    app.kill()
    app.wait()
    app.stdout.close()
    assert still_there([worker]) == []


@pytest.mark.parametrize("line", [b"", b"noise", b"[]", b'{"type": "later"}', b'{"type": "done", "id": 1}', b"\xff"])
def test_lines_that_are_not_ours_are_skipped(line: bytes) -> None:
    assert parse_reply(line) is None


def test_loading_carries_bytes() -> None:
    assert parse_reply(b'{"type":"loading","message":"fetching","done":5,"total":9}') == Loading("fetching", 5, 9)
