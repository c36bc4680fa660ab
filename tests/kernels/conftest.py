"""What the tests of the kernels share: boxes, instruction sets, backends."""

import re
import shutil
import subprocess
from ctypes import CDLL
from pathlib import Path

import pytest
import torch

from cpgr_kernels import dispatch, native

ROOT = Path(__file__).parents[2]
LEVELS = ("generic", "avx2", "avx512", "avx512bf16")


def pytest_collection_modifyitems(items):
    """Whatever asks for the CUDA device is what `pytest -m gpu` runs."""
    for item in items:
        if "cuda" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(params=LEVELS)
def isa(request):
    """Runs the test on the C++ kernels of each instruction set."""
    module, reason = native.cpu()
    if module is None:
        pytest.skip(reason)
    if request.param not in module.supported_isas():
        pytest.skip(f"this build or CPU has no {request.param}")
    before = module.isa()
    module.use_isa(request.param)
    yield request.param
    module.use_isa(before)


@pytest.fixture
def cuda():
    """The CUDA device; skips where the CUDA kernels cannot run."""
    if reason := native.why_no_cuda():
        pytest.skip(reason)
    return torch.device("cuda")


@pytest.fixture
def environment(monkeypatch):
    """Sets CPGR_KERNELS_BACKEND, which is otherwise read once."""

    def force(value):
        monkeypatch.setenv("CPGR_KERNELS_BACKEND", value)
        dispatch.refresh()

    yield force
    monkeypatch.undo()
    dispatch.refresh()


@pytest.fixture
def make_boxes():
    """Random boxes that overlap a good deal; some edges tie when `grid` is given."""

    def make(*shape, seed=0, dtype=torch.float32, grid=None, side=100.0):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * side
        size = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * side / 2 + 1
        boxes = torch.cat([corner, corner + size], -1)
        if grid:
            boxes = (boxes / grid).round() * grid
        return boxes.to(dtype)

    return make


@pytest.fixture(scope="session")
def cuda_on_cpu(tmp_path_factory):
    """build(op, exports): csrc/cuda/<op>.cu as a library that runs on the CPU, thread by thread, on CPU memory.

    `exports` is C++ that follows the source: the C functions to call. See cuda_on_cpu/cuda_runtime.h.
    """
    if not shutil.which("g++"):
        pytest.skip("no g++ on PATH")
    # kernel<T><<<grid, block, 0, stream>>>(arguments);
    launch = re.compile(r"([\w<>]+?)<<<(.+?), (\w+), 0, stream>>>\((.*?)\);", re.DOTALL)

    def build(op: str, exports: str) -> CDLL:
        source = (ROOT / "csrc" / "cuda" / f"{op}.cu").read_text()
        source, launches = launch.subn(r"on_cpu::launch(\2, \3, [=] { \1(\4); });", source)
        assert launches > 0 and "<<<" not in source
        folder = tmp_path_factory.mktemp(op)
        (folder / "kernels.cpp").write_text(source + exports)
        # Our cuda_runtime.h comes first: a real one must not be found.
        includes = [f"-I{Path(__file__).parent / 'cuda_on_cpu'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-D__CUDACC__", "-w", "-shared", "-fPIC"]
        command = ["g++", *flags, *includes, "kernels.cpp", "-o", "kernels.so"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return CDLL(str(folder / "kernels.so"))

    return build
