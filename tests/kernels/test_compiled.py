"""What the kernels compile to on devices that are not here, held to what `docs/kernels.md` promises.

Nothing may spill, loads are wide, tensor cores multiply, and an inner loop spends few instructions on a weight.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
QUICK = ["cuda:90", "hip:gfx942"]
ALL = ["cuda:80", "cuda:86", "cuda:89", "cuda:90", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx1100", "hip:gfx1201"]
Facts = dict[str, dict[str, dict[str, Any]]]

LIMITS = {"cuda": {"W2": 2.7, "W3": 3.0, "W4": 2.6, "W8": 3.0}, "hip": {"W2": 3.7, "W3": 5.0, "W4": 3.7, "W8": 4.2}}
"""Thread-instructions (AMD: vector instructions) per weight: smallest block of tokens, float16, groups of 128;
on NVIDIA at 4 bits also of 64 and 32, and bfloat16 with `SHIFTS` more.

At 8 bits an H200 could afford 7.3, at 2 bits an A100, for which the count is largest, 3.1. gfx11 holds every left
operand twice, so each weight is unpacked twice there; the other AMD devices need two thirds."""
SHIFTS = 0.3
"""bfloat16 has seven bits for a field: three planes of four are shifted down, a quarter of an instruction for each."""
SHARED_MEMORY = {"80": 163, "86": 99, "89": 99, "90": 227, "120": 99}
"""KB that a program may have, by compute capability; AMD's have 64."""
SLACK = 1.03
"""How much more than in the document a product may take: other builds of the compiler count a little otherwise."""
DOCUMENT = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


def compiled(targets: list[str], cache: Path, *options: str) -> Facts:
    """Facts by target and product, compiled afresh in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.instructions", "--json", *options, *targets],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    facts: Facts = json.loads(run.stdout)
    return facts


def documented() -> dict[tuple[str, str], float]:
    """Instructions per weight that docs/kernels.md has, by target and product; none for another version of Triton."""
    if f"Triton {triton.__version__}." not in DOCUMENT:
        return {}
    return {
        (target, row[0].strip()): float(row[1])
        for target, table in re.findall(r"### (\S+)\n(.*?)(?=###|\Z)", DOCUMENT, re.DOTALL)
        for row in (line.strip("| ").split("|") for line in table.splitlines() if line.startswith("| W"))
    }


def check(facts: Facts) -> None:
    assert facts
    known = documented()
    for target, products in facts.items():
        assert len(products) >= 4
        for name, found in products.items():
            assert found["spilled"] == 0, f"{name} on {target}: {found}"
            assert found["shared"] <= SHARED_MEMORY.get(target.partition(":")[2], 64) << 10, (
                f"{name} on {target}: {found}"
            )
            assert found["per_weight"] <= SLACK * known.get((target, name), float("inf")), (
                f"{name} on {target}: {found}"
            )
            assert not known or (target, name) in known, f"docs/kernels.md does not have {name} on {target}"
            assert found["tensor_core"] > 0, f"{name} on {target}: {found}"
            bits, activations, group, shape = name.split()[:4]
            # A wave of 64 spreads the narrow tiles of 2 and 3 bits so that a lane loads 8 bytes.
            assert found["wide_loads"] > 0 or (target.startswith("hip") and bits in ("W2", "W3")), f"{name} on {target}"
            vendor = target.partition(":")[0]
            few = shape.startswith("8x" if vendor == "cuda" else "16x")
            w4_nvidia = (vendor, bits) == ("cuda", "W4")
            if few and (w4_nvidia or (activations, group) == ("fp16", "g128")):
                shifts = SHIFTS if activations == "bf16" else 0
                assert found["per_weight"] <= LIMITS[vendor][bits] + shifts, f"{name} on {target}: {found}"


def test_decode_kernels(tmp_path: Path) -> None:
    """A generation of either vendor; the slow test has the rest."""
    facts = compiled(QUICK, tmp_path, "--quick")
    check(facts)
    w4 = next(found for name, found in facts["cuda:90"].items() if name.startswith("W4 fp16 g128"))
    assert w4["per_weight"] <= 2.0
    assert w4["registers"] <= 128


def test_the_document_has_what_every_target_ships() -> None:
    """So that the slow test compares all of it."""
    known = documented()
    assert not known or all(sum(key[0] == target for key in known) > 12 for target in ALL)


@pytest.mark.slow
@pytest.mark.parametrize("target", ALL)
def test_everything_that_ships(target: str, tmp_path: Path) -> None:
    check(compiled([target], tmp_path))
