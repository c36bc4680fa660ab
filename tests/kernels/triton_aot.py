"""Compiles Triton kernels ahead of time, without a GPU, and prints what the compiler made of them as JSON.

    python tests/kernels/triton_aot.py cpgr_kernels.triton_kernels.anchors

A module of kernels offers `AOT_CASES`: a list of dicts with `name`, `kernel` (the jitted function), `signature`
(argument name to type; "constexpr" for constants), `constexprs` (values), `attrs` (divisibility, as Triton's ASTSource
takes them: without it no vector loads are made) and `options` (num_warps, num_stages); and, if it likes,
`tensor_cores`: "wgmma" or "mma", which must then be found in Hopper's code ("mma" in Ampere's). It must run in a
process of its own: the interpreter and the compiler cannot share one.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = (80, 90)


def main(module_name: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    rows = []
    for case in importlib.import_module(module_name).AOT_CASES:
        source = ASTSource(case["kernel"], case["signature"], case["constexprs"], case.get("attrs"))
        for architecture in ARCHITECTURES:
            target = GPUTarget("cuda", architecture, 32)
            compiled = triton.compile(source, target=target, options=case.get("options"))
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(compiled.asm["cubin"])
                file.flush()
                report = subprocess.run(
                    [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
                ).stdout
            ptx = compiled.asm["ptx"]
            rows.append(
                {
                    "name": case["name"],
                    "tensor_cores": case.get("tensor_cores"),
                    "architecture": architecture,
                    "shared": compiled.metadata.shared,
                    "registers": int(re.search(r"REG:(\d+)", report)[1]),
                    "spilled_bytes": int(re.search(r"STACK:(\d+)", report)[1])
                    + int(re.search(r"LOCAL:(\d+)", report)[1]),
                    "wgmma": ptx.count("wgmma.mma_async"),
                    "mma": ptx.count("mma.sync"),
                    "vector_loads": len(re.findall(r"ld\.global[.\w]*\.v[24]|cp\.async", ptx)),
                }
            )
    json.dump(rows, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
