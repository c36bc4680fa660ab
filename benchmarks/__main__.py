"""Measure the kernels, and what of the system is a matter of speed: `python -m benchmarks [--op NAME] [--case TEXT] [--peer NAME] [--threads N] [--device cpu|cuda] [--out DIR]`.

The peers are listed in benchmarks/requirements.txt; one that is missing is a row that says so.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

OPS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
THREAD_VARIABLES = tuple(f"{pool}_NUM_THREADS" for pool in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON"))


def main() -> None:
    """Run the benchmarks that were asked for and print, or write, their tables."""
    description, *_ = __doc__.splitlines()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    parser.add_argument("--op", choices=OPS, action="append", help="one file of benchmarks (default: all)")
    parser.add_argument("--case", default="", help="only the cases with this text in their name")
    parser.add_argument("--peer", action="append", help="compare with this peer only (default: all of the case)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every implementation (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where tensors live (default: cpu)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time a case, about (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="times a case is timed at least (default: 5)")
    parser.add_argument("--out", type=Path, help="write <machine>.json and .md into this folder, op by op; ops measured before stay")
    arguments = parser.parse_args()

    # Thread pools read these when they are loaded, so they are set before torch is imported.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(arguments.threads)))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # compiling must not disturb what is timed
    import torch

    from .harness import measure
    from .roofline import roofline
    from .tables import as_markdown, machine, write

    torch.set_num_threads(arguments.threads)
    setting, reached = machine(arguments.device), roofline(arguments.device)
    rows, wrong = [], []
    for op in arguments.op or OPS:
        measured = []
        for case in import_module(f".bench_{op}", __package__).cases(arguments.device):
            if arguments.case not in case.name:
                continue
            print(f"{case.op}, {case.name}", file=sys.stderr, flush=True)
            try:
                measured.append(measure(case, arguments.seconds, arguments.peer, arguments.device, arguments.rounds))
            except AssertionError as error:
                wrong.append(f"{case.op}, {case.name}: the results differ, so nothing was timed: {error}")
        rows += measured
        if arguments.out:
            print(write(arguments.out, measured, setting, reached), file=sys.stderr)
    print(as_markdown(rows, setting, reached))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
