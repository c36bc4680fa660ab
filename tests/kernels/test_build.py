"""What was compiled, and what a build says about what it leaves out."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpgr_kernels import build_info, native

ROOT = Path(__file__).parents[2]
MOST_REGISTERS = 128  # two blocks of 256 threads on a multiprocessor
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def test_the_cpu_module_tells_how_it_was_built():
    info = build_info()["cpu"]
    if not info["built"]:
        pytest.skip(info["reason"])
    assert info["version"] and info["compiler"] and info["isa"] == info["supported_isas"][-1]


def test_a_missing_cuda_module_has_a_reason():
    info = build_info()["cuda"]
    assert info["built"] or "CPGR_CUDA=1" in info["reason"]


def test_the_cuda_module_imports_without_a_driver():
    module, reason = native.cuda()
    if module is None:
        pytest.skip(reason)
    assert callable(module.nms_small) and callable(module.box_iou)
    assert module.architectures and module.toolkit


@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.name)
def test_cuda_kernels_compile_without_spills(source, tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc on PATH")
    flags = ["-std=c++17", "-O3", "--fmad=false", "-Xptxas=-v", "-gencode=arch=compute_80,code=sm_80"]
    flags += ["-gencode=arch=compute_90,code=[sm_90,compute_90]"]
    command = ["nvcc", *flags, "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert spills and set(spills) == {"0"}, report
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) * 2 == len(spills) and max(registers) <= MOST_REGISTERS, report


def configure(folder, *options, **environment):
    if not shutil.which("cmake") or importlib.util.find_spec("pybind11") is None:
        pytest.skip("cmake and pybind11 are needed to configure a build")
    import pybind11

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_build_without_nvcc_says_so_or_fails_if_cuda_was_asked_for(tmp_path):
    without = {"CUDACXX": "/nonexistent/nvcc"}
    done = configure(tmp_path / "auto", "-DCPGR_CUDA=AUTO", **without)
    assert done.returncode == 0, done.stderr
    assert "CUDA part not built: no CUDA compiler" in done.stdout
    done = configure(tmp_path / "asked", "-DCPGR_CUDA=ON", **without)
    assert done.returncode != 0 and "found no CUDA compiler" in done.stderr
