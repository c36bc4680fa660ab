"""Cases and how they are measured, shared by every `bench_<op>.py`.

A module `bench_<op>` offers `cases()`: problems, each with the implementations that solve it. The first is ours, the
others are its peers. They must agree before anything is timed. Runs are interleaved (ours, peer, ours, peer, ...), so
that a machine that slows down slows all of them, and the figure is the ratio of medians.
"""

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .peers import MissingPeer
from .timing import Clock, peak_bytes

MIN_ROUNDS, MAX_ROUNDS = 5, 200


@dataclass
class Case:
    """One problem: `run` by implementation name, ours first, and the work it does."""

    op: str
    name: str
    run: dict[str, Callable[[], Any] | MissingPeer]
    agree: Callable[[Any, Any], None]  # raises if two results differ
    floor_bytes: int = 0  # read and written at least
    floor_flops: int = 0  # floating-point operations at least
    # Peers that do less or other work (a bare matrix product, attention without a map): timed, not compared.
    other_work: tuple[str, ...] = ()
    goals: dict[str, float] = field(default_factory=dict)  # the ratio aimed at, by peer
    facts: dict[str, Any] = field(default_factory=dict)


def against_reference(call: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """The best backend of an op and its plain-torch reference; `call` takes `backend`."""
    return {"cpgr_kernels": partial(call, backend=None), "reference": partial(call, backend="reference")}


def agree_exactly(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same numbers, NaN where NaN is."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def agree_closely(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same numbers up to the rounding of float32 sums."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def measure(
    case: Case, budget: float, only_peers: Collection[str] | None = None, device: str = "cpu", least_rounds: int = MIN_ROUNDS
) -> dict[str, Any]:
    """Check that all agree, then time them in turn for about `budget` seconds, `least_rounds` times at least.

    `only_peers`: leave out every peer of another name.
    """
    clock = Clock(device)
    ours, *peers = case.run
    if only_peers:
        peers = [name for name in peers if name in only_peers]
    missing = {name: case.run[name].reason for name in peers if isinstance(case.run[name], MissingPeer)}
    peers = [name for name in peers if name not in missing]
    runs = {name: case.run[name] for name in (ours, *peers)}
    result = runs[ours]()
    for peer in peers:
        theirs = runs[peer]()
        if peer not in case.other_work:
            case.agree(result, theirs)
        del theirs
    del result

    peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
    repeats = {name: clock.repeats(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + budget
    for done in range(MAX_ROUNDS):
        if done >= least_rounds and time.perf_counter() > end:
            break
        for name, run in runs.items():
            samples[name].append(clock.sample(run, repeats[name]))
    median = {name: statistics.median(times) for name, times in samples.items()}
    return {
        "op": case.op,
        "case": case.name,
        **case.facts,
        "milliseconds": {name: value * 1e3 for name, value in median.items()},
        "ratio": {peer: median[peer] / median[ours] for peer in peers},
        "goals": case.goals,
        "peak_bytes": peaks,
        "missing": missing,
        "gigabytes_per_second": case.floor_bytes / median[ours] / 1e9,
        "gigaflops_per_second": case.floor_flops / median[ours] / 1e9,
        "rounds": len(samples[ours]),
    }
