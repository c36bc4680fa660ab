"""What the tests of the kernels share: boxes, instruction sets, backends."""

import pytest
import torch

from cpgr_kernels import dispatch, native

LEVELS = ("generic", "avx2", "avx512", "avx512bf16")


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
