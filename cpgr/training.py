"""The one training loop: every trained part of every recipe goes through `train`.

Batches are a function of (seed, step) alone and the state of a run in progress is saved whole, so that a
training killed at any moment goes on where it was and ends with the same weights as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from . import processes
from .prefetch import ahead
from .progress import track

log = logging.getLogger("cpgr")


@dataclass
class TrainingConfig:
    """How a part is trained.

    Attributes:
        steps: Optimiser steps; 0 counts `epochs` instead.
        epochs: Passes over the training labels, used where `steps` is 0.
        batch_size: Labels a step, over all processes.
        learning_rate: Peak learning rate.
        pretrained_rate: Learning rate of pretrained branches, as a share of `learning_rate`.
        weight_decay: AdamW's weight decay; none on biases and norms.
        betas: AdamW's two rates of averaging.
        epsilon: What AdamW adds to the root of the second moment.
        warmup: Steps of linear warm-up.
        final_rate: Learning rate at the end of a cosine or an exponential fall, as a share of `learning_rate`.
        schedule: How the rate falls after the warm-up: `cosine`; `steps`, to a tenth at each of `falls`; or `exponential`,
            from the first of `falls` on.
        falls: Shares of the training at which the rate falls.
        clip: Largest gradient norm; 0 does not clip.
        ema: Decay of the running average of weights that is validated and kept (0: the last weights are).
        prefetch: Batches that a thread beside the training loads ahead; 0 loads each when it is wanted.
        checkpoint_seconds: Seconds between saved states of a training in progress; 0 saves only on Ctrl-C.
        validate_every: Steps between validations, where the recipe allows model selection; 0 keeps the last weights.
    """

    steps: int = 0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    pretrained_rate: float = 0.1
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    warmup: int = 50
    final_rate: float = 0.0
    schedule: Literal["cosine", "steps", "exponential"] = "cosine"
    falls: tuple[float, ...] = ()
    clip: float = 1.0
    ema: float = 0.0
    prefetch: int = 2
    checkpoint_seconds: float = 300.0
    validate_every: int = 0

    def step_count(self, size: int) -> int:
        return self.steps or self.epochs * max(1, size // min(self.batch_size, size))


class Batches:
    """Indices of every batch from `first` on: each epoch a new shuffle, drawn from (seed, epoch) alone.

    They are the same on every process; `processes.share_batch` says which of a batch's rows are whose.
    """

    def __init__(self, size: int, batch_size: int, steps: int, seed: int, first: int = 0):
        self.size, self.batch_size, self.steps, self.seed = size, min(batch_size, size), steps, seed
        self.first = first

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self):
        per_epoch = max(1, self.size // self.batch_size)
        epoch, order = -1, None
        for step in range(self.first, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
                order = torch.randperm(self.size, generator=generator).tolist()
            start = step % per_epoch * self.batch_size
            yield order[start : start + self.batch_size]


def seed_everything(*parts) -> int:
    """Seed every generator from the parts (seed, cycle, step name, ...); returns the seed used."""
    import hashlib

    import numpy as np

    seed = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def make_accelerator(precision: str = "auto"):
    """accelerate's device, precision and processes. `auto` is bf16 where the hardware multiplies it, else fp32."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if precision == "auto":
        precision = "bf16" if _fast_bf16() else "no"
    precision = {"fp32": "no"}.get(precision, precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # accelerate keeps one a process; a second run may want another precision
    # A step may leave parameters unused: a batch without expressions of unknown region, an objective of weight 0.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    several_cpus = processes.count() > 1 and not torch.cuda.is_available()
    return Accelerator(mixed_precision=precision, cpu=several_cpus, kwargs_handlers=[unused])


def _fast_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    flags = _cpu_flags()
    # Intel's CPUs multiply bf16 by AMX; by AVX-512 they take twice as long as with fp32 (measured on Sapphire Rapids).
    fast = "amx_bf16" in flags or ("avx512_bf16" in flags and "GenuineIntel" not in flags)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and fast


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@dataclass
class History:
    """Losses by name, one value every `every` steps, the validation scores, and the seconds and steps of the training
    (validation not counted)."""

    every: int = 10
    losses: dict[str, list[float]] = field(default_factory=dict)
    validation: list[list[float]] = field(default_factory=list)  # [step, score]
    seconds: float = 0.0
    steps: int = 0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))


def train(
    model: nn.Module,
    data: Dataset,
    collate: Callable,
    config: TrainingConfig,
    accelerator,
    *,
    seed: int,
    work: Path,
    what: str,
    groups: list[dict] | None = None,
    validate: Callable[[], float] | None = None,
) -> History:
    """Train `model` in place; `model(batch)` returns a dict of scalar losses with their sum under `loss`.

    A batch is `collate` of its rows of `data`; what it draws at random comes from Python's `random`, seeded by (seed,
    step). With several processes every one is given the whole batch and returns its loss, unless `data` says how its rows may be
    shared (`processes.share_batch`): losses and gradients are those of one process, up to rounding and what dropout draws.

    `work` holds the state of a training in progress; the caller removes it once it has saved what came of it. `groups` are AdamW's parameter
    groups (default: all trainable parameters, no decay on vectors). With `validate` and `validate_every`, the
    weights of the best validation are the ones kept.
    """
    steps = config.step_count(len(data))
    if len(data) == 0:
        raise ValueError(f"{what}: no labels to train on")
    groups = groups or parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), eps=config.epsilon)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, config))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    state = _State(model, optimizer, schedule, work / "training.pt", config.ema)
    state.restore()
    batches = Batches(len(data), config.batch_size, steps, seed, state.step)
    loaded = ahead(_load(data, collate, batches, seed), config.prefetch)
    model.train()
    saved = clock = time.monotonic()
    try:
        for batch, scale in track(loaded, what, len(batches)):
            torch.manual_seed(_mixed(seed, state.step, processes.index()))  # a resumed run's dropout is that of a whole one
            with accelerator.autocast():
                losses = wrapped(batch)
            if scale != 1:
                losses = {name: value * scale for name, value in losses.items()}
            accelerator.backward(losses["loss"])
            shown = processes.mean(losses)
            if config.clip:
                accelerator.clip_grad_norm_((p for g in optimizer.param_groups for p in g["params"]), config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            state.note(shown)
            state.history.seconds += time.monotonic() - clock
            if validate and config.validate_every and (state.step % config.validate_every == 0 or state.step == steps):
                model.eval()
                with state.averaged():
                    state.select(validate())
                model.train()
            if config.checkpoint_seconds and time.monotonic() - saved > config.checkpoint_seconds:
                state.save(accelerator.is_main_process)
                saved = time.monotonic()
            clock = time.monotonic()
    except (KeyboardInterrupt, RuntimeError) as error:
        if isinstance(error, KeyboardInterrupt) or processes.lost(error):
            state.save(accelerator.is_main_process)
        raise
    finally:
        loaded.close()
    state.save(accelerator.is_main_process)  # until the caller has saved its artefact, the training is not lost
    state.finish()
    model.eval()
    torch.manual_seed(seed)  # the same on every process again, and `torch.initial_seed()` the caller's
    accelerator.free_memory()  # it would keep every trained model until the run ends
    accelerator.wait_for_everyone()
    if not all(math.isfinite(values[-1]) for values in state.history.losses.values() if values):
        raise FloatingPointError(f"{what}: the loss is not finite; lower the learning rate or use --precision fp32")
    return state.history


def _load(data: Dataset, collate: Callable, batches: Batches, seed: int):
    """Every batch as `collate` makes it, and what its loss is multiplied by."""
    for step, indices in enumerate(batches, batches.first):
        random.seed(_mixed(seed, step))
        rows, scale = processes.share_batch(data, indices)
        yield collate([data[i] for i in rows]), scale


def _mixed(*parts: int) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def parameter_groups(model: nn.Module, config: TrainingConfig, pretrained: Callable[[str], bool] = lambda name: False):
    """AdamW groups of the trainable parameters: decay or none (vectors), full or pretrained rate."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, pretrained(name)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decay else 0.0,
            "lr": config.learning_rate * (config.pretrained_rate if old else 1.0),
        }
        for (decay, old), parameters in groups.items()
    ]


def _rate(step: int, steps: int, config: TrainingConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "steps":
        return 0.1 ** sum(step >= share * steps for share in config.falls)
    if config.schedule == "exponential":
        start = steps * (config.falls[0] if config.falls else 0.0)
        return config.final_rate ** (max(0.0, step - start) / max(1.0, steps - start))
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class _State:
    """Everything a training in progress is: trained weights, optimiser, schedule, history. Random numbers come from the step."""

    def __init__(self, model, optimizer, schedule, path: Path, ema: float):
        self.model, self.optimizer, self.schedule, self.path, self.ema = model, optimizer, schedule, path, ema
        self.step, self.history, self.sums = 0, History(), {}
        self.best: tuple[float, dict] | None = None
        self.average: dict | None = self.weights() if ema else None

    def weights(self) -> dict[str, torch.Tensor]:
        """Trained parameters and buffers: a frozen language model need not be written again and again."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: v.detach().clone() for name, v in {**trained, **dict(self.model.named_buffers())}.items()}

    def note(self, losses: dict[str, float]) -> None:
        self._average()
        self.step += 1
        self.history.steps = self.step
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.step % self.history.every == 0:
            for name, total in self.sums.items():
                self.history.losses.setdefault(name, []).append(total / self.history.every)
            self.sums = {}

    def select(self, score: float) -> None:
        self.history.validation.append([self.step, score])
        if self.best is None or score > self.best[0]:
            self.best = (score, self.weights())

    def _average(self) -> None:
        """One step of the running average, buffers too; its decay grows to `ema` (RefCLIP's and SimREC's rule)."""
        if self.average is None:
            return
        decay = min(self.ema, (self.step + 1) / (self.step + 10))
        now = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with torch.no_grad():
            for name, mean in self.average.items():
                if mean.is_floating_point():
                    mean.lerp_(now[name].to(mean.dtype), 1 - decay)
                else:
                    mean.copy_(now[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, where there are such."""
        if self.average is None:
            yield
            return
        last = self.weights()
        self.model.load_state_dict(self.average, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(last, strict=False)

    def finish(self) -> None:
        """Leave the model with the weights to keep: the best by validation, else the averaged, else the last."""
        kept = self.best[1] if self.best else self.average
        if kept:
            self.model.load_state_dict(kept, strict=False)

    def save(self, main: bool) -> None:
        if not main:
            return
        state = {
            "step": self.step, "weights": self.weights(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "sums": self.sums, "best": self.best, "average": self.average,
            "history": dataclasses.asdict(self.history),
        }  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, temporary)
            os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:  # a full disk must not end the training it was to protect
            temporary.unlink(missing_ok=True)
            log.warning("the state of the training could not be saved in %s: %s", self.path.parent, error)

    def restore(self) -> None:
        if not self.path.exists():
            return
        saved = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(saved["weights"], strict=False)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step, self.sums, self.best, self.average = saved["step"], saved["sums"], saved["best"], saved["average"]
        self.history = History(**saved["history"])
        log.info("going on at step %d", self.step)
