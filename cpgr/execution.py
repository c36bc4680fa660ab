"""One run from its arguments: the config, the folder, the data, the cycles, the report."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path

from . import processes
from .config import make_parser, name_configs, split_recipe
from .errors import CpgrError

log = logging.getLogger("cpgr")

NOT_CONFIG = ("config", "base", "out", "resume", "recipe")  # arguments of the command itself


def command(argv: list[str], prog: str = "python -m cpgr.run") -> int:
    """One run from its arguments; raises CpgrError where `main` prints it."""
    from . import recipes

    name, rest = split_recipe(argv, recipes.RECIPES)
    recipe = recipes.load(name)
    parser = make_parser(recipe.Config, name, prog)
    if any(arg.partition("=")[0] == "--base" for arg in rest):
        raise CpgrError("base is said in a config file; on the command line give the config itself by --config")
    rest = name_configs(rest)
    given = parser.parse_args(rest)
    root = Path(given.out)
    saved = root / "config.yaml"
    processes.wait()  # until all have looked, none goes on to write
    if given.resume:
        given = _resumed(parser, rest, saved)
    elif saved.exists():
        raise CpgrError(f"{root} already holds a run; go on with it by --resume, or choose another --out")
    options = parser.instantiate(given)
    config = recipe.Config(**{k: v for k, v in vars(options).items() if k not in NOT_CONFIG})
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root):
        _log_to(root / "run.log")
        given.pop("config", None)
        text = parser.dump(given)
        start = time.monotonic()
        path = execute(recipe, config, root, text)
        log.info("finished in %.0f s: %s", time.monotonic() - start, path)
    return 0


def execute(recipe, config, root: Path, text: str) -> Path:
    """Read the data, run the cycles, write the report; returns its path. `text` is the config as it is kept in the
    folder, from the moment on that the data could be read: a mistyped path leaves no run behind."""
    import torch

    from . import cycle, gallery, metrics, report
    from .data import decoding
    from .data.readers import read_split
    from .data.records import Problems
    from .data.world import ensure_world
    from .training import make_accelerator

    _quiet_transformers()
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = make_accelerator(config.precision)
    name, several = recipe.__name__.rpartition(".")[2], f"{processes.count()} processes, " if processes.count() > 1 else ""
    log.info("recipe %s on %s, %s, %s%d threads", name, accelerator.device, accelerator.mixed_precision, several, torch.get_num_threads())
    data = processes.by_main(ensure_world)(config.data, root / "world") if config.data.format == "scenes" else config.data
    decoding.use(processes.by_main(decoding.choose)(config.data.decoder))
    log.info("JPEG files are decoded by %s on the %s", decoding.current().name, decoding.current().device)
    problems = Problems(data.on_bad)
    train, train_truth = read_split(data, data.train_split, problems)
    evaluated = {s: read_split(data, s, problems) for s in _names(data.eval_split)}
    for split, _ in [(train, None), *evaluated.values()]:
        log.info("%s: %d images, %d expressions", split.name, len(split.images), len(split.expressions))
    if problems.skipped:
        log.warning("skipped %d bad records: %s", len(problems.skipped), problems.summary())
        processes.by_main((root / "skipped.txt").write_text)("\n".join(str(e) for e in problems.skipped) + "\n")
    validate = _validation(config, data, problems, metrics)
    # the training split's boxes go to the recipe that says so in its own module, full supervision, and to no other
    supervised = hasattr(recipe, "sees_truth") and recipe.sees_truth(config)
    truth = [train_truth] if supervised else []
    parts = recipe.build(dataclasses.replace(config, data=data), accelerator, root / "work", *truth)
    _keep(root / "config.yaml", text)

    def measure(here: cycle.CycleFolder, grounder) -> dict:
        from .labels import LabelTable

        found = {}
        for split_name, (split, truth) in evaluated.items():
            found[split_name], answers = metrics.evaluate(grounder, split, truth)
            answers.save(here.folder / f"predictions-{split_name}.parquet")
            log.info("cycle %d, %s: Acc@0.5 %.3f, mean IoU %.3f", here.number, split_name, *map(_number, list(found[split_name].values())[:2]))
        if hasattr(parts.refiner, "ground"):  # a teacher that can answer by itself
            found["teacher"] = {name: metrics.evaluate(parts.refiner, *held)[0] for name, held in evaluated.items()}
            scores = ", ".join(f"{name} {_number(m['acc@0.5']):.3f}" for name, m in found["teacher"].items())
            log.info("cycle %d, the teacher's Acc@0.5: %s", here.number, scores)
        tables = [LabelTable.load(path) for path in (here.proposals, here.basic, here.refined)]
        found["labels"] = metrics.label_quality(*tables, train_truth)
        found["texts"] = metrics.text_quality(*tables[1:], train_truth)
        found["pairing"] = metrics.pairing_baselines(tables[0], tables[2], train_truth)
        found["skipped"] = problems.summary()
        log.info("cycle %d, labels: %s", here.number, ", ".join(f"{k} {v:.3f}" for k, v in found["labels"].items() if v is not None))
        gallery.collect(here, grounder, (train, train_truth), evaluated)
        return found

    cycle.run(parts, train, root, cycles=config.cycles, seed=config.seed, report=measure, validate=validate)
    return processes.by_main(report.write)(root)


@processes.by_main
def _keep(path: Path, text: str) -> None:
    """Write the run's config once, whole or not at all."""
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def _quiet_transformers() -> None:
    """Its bars and load reports would stand between the run's own lines; errors still come through."""
    import warnings

    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _validation(config, data, problems, metrics):
    """Acc@0.5 on the validation split, where the config selects models by it; declared in the recipe."""
    from .data.readers import read_split

    trained = {name: part.training for name in ("refinement", "grounding") if hasattr(part := getattr(config, name, None), "training")}
    if not any(training.validate_every for training in trained.values()):
        return None
    if data.val_split == data.train_split:
        raise CpgrError(
            f"data.val_split and data.train_split are both {data.val_split!r}: choosing the best model would see the training "
            "regions; set validate_every of the training to 0, or another --data.val_split"
        )
    split, truth = read_split(data, data.val_split, problems)
    return lambda grounder: metrics.evaluate(grounder, split, truth)[0]["acc@0.5"]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _resumed(parser, args: list[str], saved: Path):
    """The run's own config; what the command line says otherwise must agree with it, but for `cycles`."""
    if not saved.exists():
        raise CpgrError(f"{saved.parent} holds no run to go on with (no config.yaml); leave out --resume to start one")
    own = parser.parse_args(["--config", str(saved)])
    both = parser.parse_args(["--config", str(saved), *args])
    flat = [{k: v for k, v in _flat(n) if k not in ("config", "resume", "out", "cycles", "threads")} for n in (own, both)]
    other = [k for k in flat[0] if flat[0][k] != flat[1].get(k)]
    if other:
        raise CpgrError(f"{saved.parent} was started with other settings of {', '.join(other)}; start a new run with another --out")
    return both


def _flat(namespace):
    return list(namespace.items())


def _log_to(path: Path) -> None:
    """The log goes to the terminal and, whole, to run.log; the main process alone writes it."""
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    log.setLevel(logging.INFO)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = processes.is_main()
    for handler in (logging.StreamHandler(), logging.FileHandler(path)) if processes.is_main() else (logging.NullHandler(),):
        handler.setFormatter(form)
        log.addHandler(handler)


class _lock:
    """Two runs must not write one folder. The lock is the system's, so a killed run leaves none behind."""

    def __init__(self, root: Path):
        self.path, self.file = root / ".lock", None

    def __enter__(self):
        self._take()

    @processes.by_main
    def _take(self) -> None:
        import fcntl

        self.file = open(self.path, "w")  # noqa: SIM115 - held while the run lasts
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CpgrError(f"another run is writing {self.path.parent}") from None

    def __exit__(self, *_):
        if self.file:
            self.file.close()
