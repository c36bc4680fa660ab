"""Runs the source of CUDA kernels on the CPU, thread by thread, so that their values can be tested without a GPU."""

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent

# kernel<T><<<grid, block, 0, stream>>>(arguments);
_LAUNCH = re.compile(r"([\w<>]+?)<<<(.+?), (\w+), 0, stream>>>\((.*?)\);", re.DOTALL)


def why_not() -> str | None:
    """None if `build` can run."""
    if not shutil.which("g++"):
        return "no g++ on PATH"
    if find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def build(op: str, folder: Path) -> ModuleType:
    """The module `_cuda` with this op alone, on the addresses of CPU tensors."""
    import pybind11

    kernels = (ROOT / "csrc" / "cuda" / f"{op}.cu").read_text()
    kernels, launches = _LAUNCH.subn(r"on_cpu::launch(\2, \3, [=] { \1(\4); });", kernels)
    assert launches > 0 and "<<<" not in kernels
    bindings = ROOT / "csrc" / "bindings" / "cuda"
    (folder / "kernels.cpp").write_text(f"{kernels}\n")
    (folder / "bindings.cpp").write_text(f'#include "{bindings / "module.cpp"}"\n#include "{bindings / op}.cpp"\n')

    # HERE before all else: its cuda_runtime.h must be found and not a real one.
    flags = ["-std=c++17", "-ffp-contract=off", "-w", "-fPIC", "-fvisibility=hidden", f"-I{HERE}"]
    constants = [f"-DCPGR_OPS=X({op})"]
    constants += [f'-DCPGR_{name}="on the CPU"' for name in ("VERSION", "CUDA_TOOLKIT", "CUDA_ARCHITECTURES")]
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    compile_kernels = ["g++", *flags, "-O1", "-D__CUDACC__", f"-I{ROOT / 'csrc' / 'cuda'}", "-c", "kernels.cpp"]
    compile_bindings = ["g++", *flags, "-O0", *constants, *includes, "-c", "bindings.cpp"]
    running = [
        subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        for command in (compile_kernels, compile_bindings)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    subprocess.run(["g++", "-shared", "kernels.o", "bindings.o", "-o", "_cuda.so"], cwd=folder, check=True)

    loader = ExtensionFileLoader("_cuda", str(folder / "_cuda.so"))
    module = module_from_spec(spec_from_loader("_cuda", loader))
    loader.exec_module(module)
    sys.modules.pop("_cuda", None)
    return module
