"""The same cases for pytest-benchmark: `pytest benchmarks --benchmark-group-by=param:case`."""

from importlib import import_module
from pathlib import Path

import pytest

from .peers import MissingPeer

OPS = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))


def _runs():
    for op in OPS:
        for case in import_module(f".{op}", __package__).cases("cpu"):
            for name, run in case.run.items():
                yield pytest.param(run, id=f"{case.op} {case.name}-{name}")


def pytest_generate_tests(metafunc):
    """Make the problems when the tests are collected, and only then."""
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", list(_runs()))


def test_speed(benchmark, run):
    if isinstance(run, MissingPeer):
        pytest.skip(run.reason)
    benchmark(run)
