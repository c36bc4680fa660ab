"""The C++ kernels under AddressSanitizer: nothing is read or written out of bounds, whatever the tests pass."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Compilers and process pools of torch.compile are no part of what is checked here, and some die under the sanitizer.
LEFT_OUT = "compil or opcheck or sanitizer or build or triton or export or transformers"
# The tests whose sizes and values are awkward; the others pass the same code with tamer ones.
CHOSEN = "fuzz or hostile or size or shape or empty or stride or tile or nan or degenerate or crowded or run_lengths"


@pytest.mark.slow
def test_kernels_stay_in_bounds(tmp_path):
    if not shutil.which("cmake") or not shutil.which("g++") or importlib.util.find_spec("pybind11") is None:
        pytest.skip("cmake, g++ and pybind11 are needed to build the sanitized module")
    import pybind11

    package = tmp_path / "cpgr_kernels"
    shutil.copytree(
        ROOT / "kernels" / "cpgr_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    build = tmp_path / "build"
    options = ["-DCPGR_SANITIZE=address", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCPGR_CUDA=OFF"]
    options += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}"]
    options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    _run(["cmake", "-S", ROOT, "-B", build, *options])
    _run(["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1)])

    # The C++ library must be there before the sanitizer looks for its throw.
    preloaded = [_run(["g++", f"-print-file-name={name}.so"]).strip() for name in ("libasan", "libstdc++")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        # Python itself leaks; torch throws through C++ frames that were not instrumented.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:log_path={tmp_path / 'report'}",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "2",
    }
    check = "import cpgr_kernels; assert cpgr_kernels.build_info()['cpu']['built'], cpgr_kernels.build_info(); print(cpgr_kernels.__file__)"
    assert str(tmp_path) in _run([sys.executable, "-c", check], environment)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"({CHOSEN}) and not ({LEFT_OUT})"]
    done = subprocess.run([*command, str(ROOT / "tests" / "kernels")], capture_output=True, text=True, env=environment)
    reports = "".join(path.read_text() for path in tmp_path.glob("report*"))
    found = done.returncode != 0 or "ERROR: AddressSanitizer" in reports
    assert not found, reports[:8000] + (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout


def _run(command, environment=None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout
