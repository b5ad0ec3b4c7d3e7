"""A run's work on a Ray cluster: the same bytes as without one, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model

from awq_engine.cluster import Cluster
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError, NetworkError, UsageError
from awq_engine.events import RunFinished
from tests.engine.tiny_run import executed, tiny_request

CPU = torch.device("cpu")


def test_address_must_look_like_one():
    with pytest.raises(UsageError, match=r"'box' is no address of a Ray cluster; it looks like ray://host:10001"):
        RunConfig("model", "/out", on="box")


def test_missing_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'awq-tui\[ray\]'"):
        Cluster("auto", 1, 1, CPU, print)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster of two processes on this machine."""
    pytest.importorskip("ray")
    ray = Path(sys.executable).with_name("ray")
    folder = tmp_path_factory.mktemp("ray")
    options = ["--num-cpus=2", "--port=26379", "--ray-client-server-port=20099", "--include-dashboard=false"]
    memory = "--object-store-memory=500000000"
    with subprocess.Popen(
        [ray, "start", "--head", "--block", "--disable-usage-stats", *options, memory, f"--temp-dir={folder}"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as head:  # fmt: skip
        yield "ray://127.0.0.1:20099"
        os.killpg(head.pid, signal.SIGTERM)


@pytest.fixture
def cluster(address: str) -> Iterator[Cluster]:
    deadline = time.monotonic() + 60
    while True:
        try:
            found = Cluster(address, 1, 1, CPU, print)
            break
        except NetworkError:
            if time.monotonic() > deadline:
                raise
    yield found
    found.close()


@pytest.mark.slow
def test_results_in_order_and_errors_as_they_are(cluster: Cluster):
    assert list(cluster.map(abs, range(-6, 0))) == [6, 5, 4, 3, 2, 1]
    with pytest.raises(BadInputError, match="no JSON object"):
        list(cluster.map(RunConfig.from_json, [[]]))  # type: ignore[list-item]


def written(folder: Path, model: Path, **options: object) -> bytes:
    run = executed(tiny_request(folder, model, samples=8, overwrite=True, **options))
    assert any(isinstance(record.event, RunFinished) for record in run.records())
    return (folder / "out" / "model.safetensors").read_bytes()


def kill_a_worker() -> int:
    """How many of Ray's busy processes were killed."""
    found = subprocess.run(["pgrep", "-f", "^ray::_perform"], capture_output=True, text=True, check=False)
    for pid in found.stdout.split()[:1]:
        os.kill(int(pid), signal.SIGKILL)
        return 1
    return 0


@pytest.mark.slow
def test_same_bytes_as_one_process_though_workers_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, address: str
):
    cluster.close()
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("awq_engine.streams.BATCH_TOKENS", 64)  # several batches
    model = write_tiny_model(tmp_path / "model")
    alone = written(tmp_path, model)
    killed, done = 0, threading.Event()

    def kill_now_and_then() -> None:
        nonlocal killed
        while not done.wait(0.3) and killed < 3:
            killed += kill_a_worker()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        assert written(tmp_path, model, on=address) == alone
    finally:
        done.set()
        killer.join()
    assert killed


@pytest.mark.slow
def test_nobody_at_the_address(cluster: Cluster):
    cluster.close()
    with pytest.raises(NetworkError, match=r"The Ray cluster at ray://127.0.0.1:20098 cannot be reached"):
        Cluster("ray://127.0.0.1:20098", 1, 1, CPU, print)
