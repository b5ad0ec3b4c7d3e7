"""`make bench`: every benchmark that runs on this machine without further arguments, on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import torch

DEMO = str(files("awq_engine") / "data" / "demo-model")


def main() -> int:
    commands = [["benchmarks.quality", DEMO, "--seq-len", "256", "--samples", "32"]]
    if torch.cuda.is_available():
        commands += [["benchmarks.kernel_bandwidth", "--quick"], ["benchmarks.kernel_peers", "--quick"]]
    return max(subprocess.run([sys.executable, "-m", *command], check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
