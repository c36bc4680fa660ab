"""Which implementation runs: the best that can, or the one that was asked for, never another."""

import os
import subprocess
import sys

import pytest
import torch

from cpgr_kernels import attention_with_map, backends, box_iou, dispatch, native, nms
from cpgr_kernels.dispatch import BackendError

BOXES, SCORES = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.ones(1)


@pytest.fixture
def without_modules(monkeypatch):
    """As if nothing had been compiled."""
    native.cpu.cache_clear(), native.cuda.cache_clear(), dispatch.refresh()
    monkeypatch.setattr(native, "_load", lambda name: (None, f"No module named {name!r}"))
    yield
    monkeypatch.undo()
    native.cpu.cache_clear(), native.cuda.cache_clear(), dispatch.refresh()


def row(op, device, backend):
    (found,) = [each for each in backends(op) if (each.device, each.backend) == (device, backend)]
    return found


def test_every_op_has_one_choice_on_the_cpu():
    rows = backends()
    assert {each.op for each in rows} >= {"box_iou", "nms", "batched_nms"}
    for op in {each.op for each in rows}:
        assert sum(each.chosen for each in rows if each.op == op and each.device == "cpu") == 1
    assert all(each.reason for each in rows)


def test_cpp_comes_first():
    assert row("nms", "cpu", "cpp").chosen and not row("nms", "cpu", "reference").chosen


def test_a_device_that_is_not_there_is_told():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    missing = row("nms", "cuda", "cuda")
    assert not missing.available and not missing.chosen and "CUDA" in missing.reason


def test_without_compiled_modules_the_reference_runs_and_says_why(without_modules):
    assert nms(BOXES, SCORES, 0.5).tolist() == [0]
    chosen = row("nms", "cpu", "reference")
    assert chosen.chosen and "C++ kernels are not built" in chosen.reason and "pip install" in chosen.reason
    with pytest.raises(BackendError, match="backend='cpp' cannot run.*not built.*pip install"):
        nms(BOXES, SCORES, 0.5, backend="cpp")


def test_an_argument_forces(monkeypatch):
    calls = []
    monkeypatch.setitem(dispatch._implementations["nms"], "reference", lambda *args: calls.append(args) or SCORES)
    dispatch.refresh()
    nms(BOXES, SCORES, 0.5, backend="reference")
    nms(BOXES, SCORES, 0.5)
    assert len(calls) == 1
    dispatch.refresh()


def test_a_forced_backend_that_cannot_run_raises():
    with pytest.raises(BackendError, match="nms: backend='cuda' cannot run: it runs on cuda tensors.*on cpu"):
        nms(BOXES, SCORES, 0.5, backend="cuda")
    with pytest.raises(BackendError, match="no such backend.*cpp, cuda, reference"):
        box_iou(BOXES, BOXES, backend="fast")


def test_the_environment_forces(environment):
    environment("reference")
    assert row("nms", "cpu", "reference").chosen
    assert "CPGR_KERNELS_BACKEND" in row("nms", "cpu", "reference").reason
    environment("nms=reference")
    assert row("nms", "cpu", "reference").chosen and row("box_iou", "cpu", "cpp").chosen
    environment("reference,nms=cpp")
    assert row("nms", "cpu", "cpp").chosen and row("box_iou", "cpu", "reference").chosen


def test_an_argument_beats_the_environment(environment):
    environment("cuda")
    assert nms(BOXES, SCORES, 0.5, backend="reference").tolist() == [0]


def test_an_environment_that_cannot_be_followed_raises_and_is_shown(environment):
    environment("cuda")
    with pytest.raises(BackendError, match="CPGR_KERNELS_BACKEND=cuda cannot run"):
        nms(BOXES, SCORES, 0.5)
    shown = row("nms", "cpu", "reference")
    assert not shown.chosen and "CPGR_KERNELS_BACKEND=cuda cannot run" in shown.reason
    environment("nsm=cpp")
    with pytest.raises(BackendError, match="names no op 'nsm'"):
        nms(BOXES, SCORES, 0.5)


def run_python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_import_needs_torch_alone():
    code = (
        "import sys, cpgr_kernels\n"
        "loaded = {'cpgr', 'transformers', 'PIL', 'pyarrow', 'matplotlib', 'triton', 'peft'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_instruction_set_by_environment():
    if native.cpu()[0] is None:
        pytest.skip(native.cpu()[1])
    code = (
        "import cpgr_kernels, os\n"
        "assert cpgr_kernels.build_info()['cpu']['isa'] == 'generic'\n"
        "from cpgr_kernels import native\n"
        "native.cpu.cache_clear(); os.environ['CPGR_KERNELS_ISA'] = 'sse9'\n"
        "try: cpgr_kernels.build_info()\n"
        "except RuntimeError as error: assert 'CPGR_KERNELS_ISA' in str(error) and 'generic' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    done = run_python(code, CPGR_KERNELS_ISA="generic")
    assert done.returncode == 0, done.stderr


def test_autocast_changes_no_op():
    q, k, v = torch.rand(3, 1, 2, 5, 8).unbind(0)
    for backend in ("reference", "cpp"):
        out, seen = attention_with_map(q, k, v, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            again, seen_again = attention_with_map(q, k, v, backend=backend)
        assert again.dtype is torch.float32 and torch.equal(out, again) and torch.equal(seen, seen_again)
