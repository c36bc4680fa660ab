"""A training step of RefCLIP by batch: its time and memory with the fused loss and with the published one.

    python -m benchmarks.refclip_step            measured: projections, loss and their gradients, each size in a process of its own
    python -m benchmarks.refclip_step --count    counted: the bytes of a whole step at the published size, on no memory at all

The measured part is what the batch's size squares: the fused maps of N anchors an image and the expressions' vectors come in, the
two projections, the loss and all gradients are computed. Its memory is the growth of the process's peak.
Counted are the tensors alive at once when the whole step runs on shapes alone (FakeTensorMode): parameters, their gradients and
Adam's two moments, the batch's cached maps in bfloat16, and all activations, with images encoded 64 at a time (`recompute`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from .bench_anchor_contrast import refclip_loss

SIZES = (64, 256, 1024, 2048, 4096)
WIDTH, FUSED = 512, 1024
CARD = 24 * 2**30
MOST = 3 * 2**30  # what this machine's other users leave for a measurement


def losses():
    from cpgr_kernels import anchor_contrast

    return {"fused": anchor_contrast, "published": lambda anchors, queries: refclip_loss(anchors, queries.unsqueeze(1))}


def published_shapes(anchors: torch.Tensor, expressions: torch.Tensor, *_) -> torch.Tensor:
    """The published loss without its masks, whose selection has no shape before it has run: what it holds is at least this."""
    count = len(anchors)
    best = torch.einsum("avd,bqd->baqv", anchors, expressions.unsqueeze(1)).topk(2, dim=-1).values.squeeze(2)
    second = best[..., 1].flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)  # all but the diagonal
    return nn.functional.cross_entropy(torch.cat([best[..., 0], second], dim=1), torch.arange(count))


def measured(images: int, anchors: int, which: str, rounds: int) -> dict:
    """Seconds and bytes of one step in this process."""
    torch.manual_seed(0)
    cells, words = torch.randn(images, anchors, FUSED), torch.randn(images, WIDTH)
    project, express = nn.Linear(FUSED, WIDTH), nn.Linear(WIDTH, WIDTH)
    loss = losses()[which]
    with torch.no_grad():
        project.weight *= 0.2  # products of the order of 1
    before = peak()

    def step() -> float:
        start = time.perf_counter()
        cells.grad = None
        loss(project(cells), express(words)).backward()
        return time.perf_counter() - start

    cells.requires_grad_(), words.requires_grad_()
    times = [step() for _ in range(rounds + 1)][1:] or [step()]
    return {"seconds": statistics.median(times), "bytes": peak() - before}


def peak() -> int:
    """The most memory this process has held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def expected(images: int, anchors: int) -> int:
    """What the published loss needs in all, roughly: scores and their gradient, top two, masks, soft maximum."""
    return (8 * anchors + 60) * images**2 + 12 * images * anchors * FUSED


def counted(images: int, anchors: int, which: str, recompute: int) -> dict:
    """The largest sum of bytes alive in a whole training step at the published size."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from cpgr.data.proposals.darknet import DarkNet
    from cpgr.refinement.anchors import network as parts
    from cpgr.refinement.anchors.settings import AnchorConfig
    from cpgr.refinement.anchors.sources import Cells, DarkNetSource

    config = AnchorConfig(anchors=anchors, recompute=recompute)
    if which == "published":
        parts.contrast = published_shapes
    with FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        network = parts.AnchorNetwork(config, DarkNetSource(DarkNet(), 416), 10_344)
        network.language.embedding.requires_grad_(False)
        step = parts.ContrastStep(network, config).train()
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        sides = ((1024, 13), (512, 26), (256, 52))
        maps = tuple(torch.empty(images, c, s, s, dtype=torch.bfloat16) for c, s in sides)
        rest = torch.empty(images, 169, 4), torch.empty(images, 169), torch.empty(images, 169), torch.empty(images, 169, dtype=torch.long)
        numbers = torch.arange(images)
        batch = {"cells": Cells(maps, *rest), "place": numbers, "ids": torch.ones(images, 15, dtype=torch.long), "numbers": numbers}
        for _ in range(2):  # the second step has Adam's moments
            alive.most = alive.now
            with torch.autocast("cpu", torch.bfloat16):
                loss = step(batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"bytes": alive.most, "maps": sum(m.numel() * 2 for m in maps)}


class Alive(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata)
        return out

    def gone(self, key: int) -> None:
        self.now -= self.seen.pop(key, 0)


def in_process(*args: str) -> dict | None:
    """Run one case in a process of its own, so that its peak is its own."""
    command = [sys.executable, "-m", "benchmarks.refclip_step", "--one", *args]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count bytes instead of measuring")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, which, images, anchors = args.one[0], args.one[1], int(args.one[2]), int(args.one[3])
        torch.set_num_threads(1)
        found = counted(images, anchors, which, 64) if what == "count" else measured(images, anchors, which, 3 if images < 2048 else 1)
        print(json.dumps(found))
        return
    columns = ["anchors", "batch", *(["fused GiB", "published GiB"] if args.count else ["fused s", "GiB", "published s", "GiB"])]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for anchors in (17, 169):
        for images in (64, 1024, 4096) if args.count else SIZES:
            cells = []
            for which in ("fused", "published"):
                if args.count:
                    found = in_process("count", which, str(images), str(anchors))
                    cells.append(f"{found['bytes'] / 2**30:.2f}{'' if found['bytes'] <= CARD else ' (over 24)'}" if found else "failed")
                elif (expected(images, anchors) if which == "published" else 16 * images * anchors * FUSED) > MOST:
                    cells.append("- | over 3 GiB")
                else:
                    found = in_process("measure", which, str(images), str(anchors))
                    cells.append(f"{found['seconds']:.3f} | {found['bytes'] / 2**30:.2f}" if found else "failed | ")
            print(f"| {anchors} | {images} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
