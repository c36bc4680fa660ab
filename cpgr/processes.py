"""Several processes, one run: started by `accelerate launch` or `torchrun`, each goes through the same program.

A part that knows nothing of this is right all the same: every process then does all of its work and all agree. Where
work is worth sharing, `share` gives each process its chunks and `joined` brings the results together, in the order that
one process would have; `by_main` marks what writes a file; `rowwise` shares a pass over a batch, with its gradient.
A process that fails ends; the others then see their connection to it closed (`lost`) and end too.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar

if "LOCAL_RANK" in os.environ:
    # DDP remarks, once a process, that a step used all parameters; whether it does changes from step to step
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402 - reads the setting above

T = TypeVar("T")

ALONE = 3.0  # seconds after which a process takes it that what it met is its own
PATIENCE = timedelta(days=2)  # one process may write for long; that another has ended is seen at once, by its connection


def count() -> int:
    """The number of processes, 1 where nobody started more."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return index() == 0


class _Groups(NamedTuple):
    objects: object  # gloo, whatever the device: pickled results
    tensors: object  # the device's own, apart from DDP's, so that the two cannot take each other's turn


@functools.cache
def _groups() -> _Groups:
    from accelerate import PartialState
    from torch import distributed

    PartialState(cpu=not torch.cuda.is_available())  # where accelerate has not connected the processes yet
    return _Groups(distributed.new_group(backend="gloo", timeout=PATIENCE), distributed.new_group())


def by_main(make: Callable[..., T]) -> Callable[..., T]:
    """Let the main process alone call `make`; every process gets its result (by pickle), once it is there.

    All must make the call. Nothing is written before all have come so far, so that each sees the same files until then.
    """

    @functools.wraps(make)
    def called(*args, **kwargs):
        if count() == 1:
            return make(*args, **kwargs)
        from torch import distributed

        wait()
        result = [make(*args, **kwargs) if is_main() else None]
        distributed.broadcast_object_list(result, src=0, group=_groups().objects)
        return result[0]

    return called


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's run of the items: in the order of the processes, the runs are all the items, each once."""
    return items[_run(len(items))]


def joined(found):
    """What the processes found, as one: lists one after the other, dicts united, also dicts of dicts."""
    if count() == 1:
        return found
    from torch import distributed

    parts = [None] * count()
    distributed.all_gather_object(parts, found, group=_groups().objects)
    return _united(parts)


def _united(parts: list):
    if isinstance(parts[0], dict):
        names = dict.fromkeys(name for part in parts for name in part)
        values = {name: [part[name] for part in parts if name in part] for name in names}
        return {name: _united(some) if len(some) > 1 else some[0] for name, some in values.items()}
    return [item for part in parts for item in part]


def share_batch(data, rows: Sequence[int]) -> tuple[Sequence[int], float]:
    """This process's rows of a batch, and what its loss is multiplied by for the mean over processes to be the batch's.

    `data.row_weights(rows)` says that a batch's loss is the mean of its rows' losses with these weights. A data set that
    does not say so, such as one whose rows are each other's negatives, is given the whole batch on every process.
    """
    if count() == 1 or len(rows) < count() or not hasattr(data, "row_weights"):
        return rows, 1.0
    weights, own = data.row_weights(rows), _run(len(rows))
    return rows[own], float(count() * weights[own].sum() / weights.sum())


def own_rows(size: int) -> slice:
    """This process's rows of a batch of `size` rows that `share_batch` shared."""
    return _run(size)


def gathered(own: torch.Tensor, size: int) -> torch.Tensor:
    """All rows of such a batch, from every process's own; back come the gradients that all processes have for these, summed."""
    return _Gather.apply(own, size) if count() > 1 else own


def mean(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The means over processes of scalars."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(stacked, group=_groups().tensors)
        stacked /= count()
    return dict(zip(values, stacked.tolist(), strict=True))


def from_main(value: torch.Tensor) -> torch.Tensor:
    """The main process's tensor: what is drawn at random must be the same everywhere."""
    if count() > 1:
        from torch import distributed

        distributed.broadcast(value, src=0, group=_groups().tensors)
    return value


class Rowwise:
    """`model`, whose methods `names` map R rows of tensors to R rows: each process computes its own, and gets all.

    A method's argument `image` stays whole where `owner` says which image each row belongs to. The gradient is that of
    the loss of one process, if every process computes the loss of all rows and gradients are averaged (as DDP does).
    """

    def __init__(self, model, names: Sequence[str]):
        self._model, self._names = model, names

    def __getattr__(self, name: str):
        method = getattr(self._model, name)
        return functools.partial(_rowwise, method) if name in self._names and count() > 1 else method


def _rowwise(method, *args, **kwargs):
    bound = inspect.signature(method).bind(*args, **kwargs)
    whole = {"image"} if bound.arguments.get("owner") is not None else set()
    rows = {n: v for n, v in bound.arguments.items() if isinstance(v, torch.Tensor) and n not in whole}
    size = len(next(iter(rows.values())))
    if size < count():
        return method(*args, **kwargs)
    own = _run(size)
    bound.arguments.update({n: v[own] for n, v in rows.items()})
    found = method(*bound.args, **bound.kwargs)
    if isinstance(found, tuple):
        return tuple(_Gather.apply(part, size) for part in found)
    return _Gather.apply(found, size)


class _Gather(torch.autograd.Function):
    """All processes' rows; back come the gradients that all processes have for this one's rows, summed."""

    @staticmethod
    def forward(ctx, own: torch.Tensor, size: int) -> torch.Tensor:
        from torch import distributed

        ctx.size = size
        longest = -(-size // count())
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(count())]
        distributed.all_gather(parts, padded, group=_groups().tensors)
        runs = [_run(size, i) for i in range(count())]
        return torch.cat([part[: run.stop - run.start] for part, run in zip(parts, runs, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        from torch import distributed

        total = gradient.contiguous().clone()
        distributed.all_reduce(total, group=_groups().tensors)
        return total[_run(ctx.size)], None


def _run(size: int, process: int | None = None) -> slice:
    """The rows of a process, of `size` in all; no two processes' numbers of rows differ by more than one."""
    i = index() if process is None else process
    return slice(size * i // count(), size * (i + 1) // count())


def lost(error: BaseException) -> bool:
    """Whether the error says no more than that another process has gone."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection"))


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        from torch import distributed

        distributed.barrier(group=_groups().objects)


def leave(code: int, message: str = "") -> int:
    """End a run's part in this process and say why: after success when all have come so far, else at once, so that nobody waits.

    One of several processes leaves without Python's own ending: gloo's threads abort in it, once in eight times.
    """
    if message and _speaks():
        print(message, file=sys.stderr)
    if count() > 1:
        if code == 0:
            wait()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _speaks() -> bool:
    """What all processes meet is told by the main one alone: its end makes the launcher end the others in this time."""
    try:
        if not is_main():
            time.sleep(ALONE)
        return True
    except KeyboardInterrupt:
        return False
