"""What was built and what would run here: `python -m cpgr_kernels [OP]`."""

import sys

from . import backends, build_info


def main() -> None:
    """Print the build and, for every op and device, the backend that is taken and why the others are not."""
    for part, info in build_info().items():
        print(f"{part}: " + ", ".join(f"{name} {value}" for name, value in info.items()))
    print()
    rows = backends()
    if wanted := sys.argv[1:]:
        known = sorted({row.op for row in rows})
        if unknown := [op for op in wanted if op not in known]:
            sys.exit(f"no such op: {', '.join(unknown)}; ops are: {', '.join(known)}")
        rows = [row for row in rows if row.op in wanted]
    width = max(len(row.op) for row in rows)
    for row in rows:
        mark = "->" if row.chosen else "  "
        print(f"{mark} {row.op:{width}}  {row.device:4}  {row.backend:9}  {row.reason}")


if __name__ == "__main__":
    main()
