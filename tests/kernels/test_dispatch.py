"""Choosing a backend, and what happens to weights it cannot take."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from truth import random_tokens, random_weight, relative_error, truth

from awq_kernels.dispatch import NAMES, backends, choose, prepare
from awq_kernels.reference import matmul


def test_every_backend_is_listed_with_a_reason() -> None:
    statuses = backends("cpu")
    assert tuple(status.name for status in statuses) == NAMES
    assert all(status.reason for status in statuses)


def test_auto_takes_the_int4_kernel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when Triton could be interpreted, which is for tests only."""
    assert choose("auto", "cpu").name == "cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", "cpu").name == "cpu"


def test_auto_prefers_triton_on_a_gpu() -> None:
    pytest.importorskip("triton")
    assert choose("auto", "cuda").name == "triton"


def test_unavailable_and_unknown_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"triton does not run on cpu: .*GPU"):
        choose("triton", "cpu")
    with pytest.raises(ValueError, match="no backend 'marlin'; choose one of auto, triton, cpu, reference"):
        choose("marlin", "cpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_prepared_weights_compute(backend: str) -> None:
    weight = random_weight(32, 128, 64)
    x, bias = random_tokens(3, 128, torch.float32), random_tokens(1, 32, torch.float32)[0]
    linear = prepare(weight, backend, "cpu")
    assert (linear.backend, linear.note) == (backend, None)
    assert (linear.in_features, linear.out_features) == (128, 32)
    assert relative_error(linear(x, bias), truth(x, weight, bias)) < 7e-3
    assert relative_error(linear(x), truth(x, weight)) < 7e-3


def test_the_reference_stands_in_where_the_backend_cannot() -> None:
    weight = random_weight(24, 64, 32)
    linear = prepare(weight, "cpu", "cpu")
    assert linear.backend == "reference"
    assert "multiples of 16 outputs, not 24" in str(linear.note)
    x = random_tokens(2, 64, torch.float32)
    assert torch.equal(linear(x), matmul(x, weight))


def test_the_package_works_without_triton() -> None:
    """Everything but the kernels themselves can be imported and used where triton is not installed."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from awq_kernels import dispatch, tiles, launches, unpack_asm, cpu, reference, int_weight\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "print(dispatch.choose('auto', 'cpu').name, dispatch.backends('cuda')[0].reason)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "cpu the package triton is not installed", run.stderr
