"""Builds the two extension modules of `cpgr_kernels` by CMake; everything else is in pyproject.toml.

Environment:
    CPGR_CUDA        1: build the CUDA kernels or fail; 0: do not; unset: build them if nvcc is there.
    CPGR_CUDA_ARCHS  CUDA architectures in CMake's notation, for example "90-real".
    CPGR_BUILD_DIR   keep CMake's files here, so that the next build compiles only what changed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "cpgr_kernels"
CUDA_CHOICES = {"": "AUTO", "1": "ON", "0": "OFF"}


class CMakeBuild(build_ext):
    """One CMake build places every module at once: `_C`, and `_cuda` where it can be built."""

    def run(self):
        in_place = self.inplace or self.editable_mode
        target = ROOT / "kernels" / PACKAGE if in_place else Path(self.build_lib).resolve() / PACKAGE
        build = Path(os.environ.get("CPGR_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        # A module of an earlier build with other choices must not survive beside the new ones.
        for stale in target.glob("_cuda.*.so"):
            stale.unlink()
        # CMake keeps what it found: a kept folder would go on with a removed isolated build environment.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *self.cmake_options(target)])
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "--build", str(build), "--parallel", jobs])
        if not list(target.glob("_cuda.*.so")):
            print(f"{PACKAGE}: built WITHOUT its CUDA kernels (see the line above that names the reason)", flush=True)

    def cmake_options(self, target):
        import pybind11

        choice = os.environ.get("CPGR_CUDA", "")
        if choice not in CUDA_CHOICES:
            raise SystemExit(f"CPGR_CUDA must be 1, 0 or unset, got {choice!r}")
        return [
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCPGR_CUDA={CUDA_CHOICES[choice]}",
            f"-DCPGR_CUDA_ARCHS={os.environ.get('CPGR_CUDA_ARCHS', '')}",
            f"-DCPGR_VERSION={self.distribution.get_version()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]

    def copy_extensions_to_source(self):
        """Editable installs: CMake has put the modules in the source folder already, those undeclared too."""


setup(
    # `kernels/` itself is no package: an importable folder of that name would hide Hugging Face's `kernels`.
    packages=find_packages(include=["cpgr", "cpgr.*"]) + find_packages("kernels"),
    package_dir={PACKAGE: f"kernels/{PACKAGE}"},
    ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
