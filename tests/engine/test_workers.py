"""Several processes: the same results in the same order, whoever dies; the same bytes as from one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import Gemma3nTextConfig, LlamaConfig, MixtralConfig, PreTrainedConfig

from awq_engine.config import Preset
from awq_engine.errors import BadInputError, ResourceError
from awq_engine.events import Warned
from awq_engine.workers import Processes
from tests.engine.tiny_run import executed, tiny_request
from tests.processes import still_there

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    pair = Processes(2, 1, CPU, lambda message: None)
    yield pair
    pair.close()


def double(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    return 2 * x, os.getpid(), torch.get_num_threads()


def test_results_come_in_order_from_several_processes(processes: Processes):
    results = list(processes.map(double, (torch.tensor([float(n)]) for n in range(12))))

    assert torch.equal(torch.cat([x for x, _, _ in results]), 2 * torch.arange(12.0))
    assert os.getpid() not in {pid for _, pid, _ in results}
    assert {threads for _, _, threads in results} == {1}


def fail(number: int) -> int:
    if number == 3:
        raise BadInputError("The third piece is bad.")
    return number


def test_error_arrives_as_it_is(processes: Processes):
    with pytest.raises(BadInputError, match="The third piece is bad"):
        list(processes.map(fail, range(6)))


def die_once(piece: tuple[Path, int]) -> int:
    mark, number = piece
    if number == 4 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(piece: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_death_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And dying over the same piece again and again is an error."""
    warnings: list[str] = []
    processes = Processes(2, 1, CPU, warnings.append)
    try:
        assert list(processes.map(die_once, ((tmp_path / "mark", n) for n in range(9)))) == [n * n for n in range(9)]
        assert warnings == ["a worker process died; its part of the work is done again"]
        monkeypatch.setattr("awq_engine.workers.DEATHS", 1)
        with pytest.raises(ResourceError, match=r"died 1 times.*fewer --workers"):
            list(processes.map(die, [1]))
    finally:
        processes.close()


SHARING = """
import os, sys, time
from pathlib import Path
import torch
from awq_engine.workers import Processes

def main():
    processes = Processes(2, 1, torch.device("cpu"), print)
    print(*processes.map(meet, [Path(sys.argv[1])] * 2), flush=True)
    time.sleep(600)

def meet(place):
    (place / str(os.getpid())).touch()
    while len(list(place.iterdir())) < 2:
        time.sleep(0.01)
    return os.getpid()

if __name__ == "__main__":
    main()
"""


def test_no_process_outlives_a_killed_engine(tmp_path: Path):
    script, place = tmp_path / "sharing.py", tmp_path / "place"
    script.write_text(SHARING)
    place.mkdir()
    with subprocess.Popen([sys.executable, script, place], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        pids = [int(pid) for pid in engine.stdout.readline().split()]
        engine.kill()

    assert len(pids) == 2
    assert still_there(pids) == []


SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MODELS: dict[str, PreTrainedConfig] = {
    "dense": LlamaConfig(**SIZES),
    "experts": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "handed on": Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 4}, head_dim=16, num_kv_shared_layers=2, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=2048, laurel_rank=8, altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * 4,
    ),
}  # fmt: skip


def written(folder: Path, model: Path, **options: object) -> tuple[bytes, list[str]]:
    """The checkpoint's bytes, and what the run warned of."""
    run = executed(tiny_request(folder, model, samples=6, overwrite=True, **options))
    warned = [record.event.message for record in run.records() if isinstance(record.event, Warned)]
    return (folder / "out" / "model.safetensors").read_bytes(), warned


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("dense", Preset.BEST),
        ("experts", Preset.BALANCED),
        pytest.param("handed on", Preset.FAST, marks=pytest.mark.slow),
    ],
)
def test_same_bytes_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes, kind: str, preset: Preset
):
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("awq_engine.streams.BATCH_TOKENS", 64)  # several batches
    model = write_tiny_model(tmp_path / "model", MODELS[kind])
    alone, warned = written(tmp_path, model, preset=preset)

    assert written(tmp_path, model, preset=preset, workers=2) == (alone, warned)
