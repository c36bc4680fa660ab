"""The Triton kernels without a GPU: their values in Triton's interpreter, their machine code from its compiler.

Each needs a process of its own. Timing and the cooperation of real threads need a GPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels" / "cpgr_kernels" / "triton_kernels"
MODULES = [
    path.stem for path in sorted(KERNELS.glob("*.py")) if "AOT_CASES" in path.read_text() and path.stem[0] != "_"
]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # what one program may have
NONE_COLLECTED = 5

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install triton")


def run(*command, **environment):
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1", **environment}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@needs_triton
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_values_in_the_interpreter(marked):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, HERE / "interpreted", TRITON_INTERPRET="1")
    if done.returncode == NONE_COLLECTED:
        pytest.skip(f"no interpreted tests that are {marked}")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_machine_code(module):
    environment = {"TRITON_INTERPRET": "0"}
    done = run(HERE / "triton_aot.py", f"cpgr_kernels.triton_kernels.{module}", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert rows
    for row in rows:
        architecture, wanted = row["architecture"], row["tensor_cores"]
        assert row["spilled_bytes"] == 0, row
        assert row["shared"] <= SHARED_BYTES[architecture], row
        assert row["vector_loads"] > 0, row
        if wanted:
            assert row[wanted if architecture >= 90 else "mma"] > 0, row
