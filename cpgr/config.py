"""A run's config, put together from the dataclass beside each part; YAML, command line and `--print_config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from .data.proposals import ProposalConfig
from .data.readers import DataConfig
from .errors import CpgrError
from .recipes import CONFIGS, shipped_configs


@dataclass
class RunConfig:
    """What every recipe's run has. A recipe adds a section for each of its parts.

    Attributes:
        seed: Seed of every random choice of the run.
        cycles: Cycles of Generation, Refinement and Grounding.
        precision: auto, fp32, bf16 or fp16; auto is bf16 where the hardware multiplies it.
        threads: CPU threads (0: all cores).
        data: What is read.
        proposals: Where regions come from: builtin, transformers:NAME_OR_FOLDER, onnx:FILE or file:FILE.
        detection: How many of them are kept, and their words.
    """

    shipped: ClassVar[tuple[str, ...]] = ()  # shipped configs read before the recipe's own

    seed: int = 0
    cycles: int = 3
    precision: str = "auto"
    threads: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    proposals: str = "builtin"
    detection: ProposalConfig = field(default_factory=ProposalConfig)


def named_config(name: str) -> str:
    """The path of a config: a file, or the name of one that ships with the package."""
    if Path(name).is_file():
        return name
    shipped = CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return str(shipped)
    raise CpgrError(f"no config file {name!r}, and none of that name ships with the package ({', '.join(shipped_configs())})")


def config_files(name: str) -> list[str]:
    """The path of a config, after those it lies on: a config's `base` names another, whose values it overrides."""
    import yaml

    paths: list[str] = []
    while name:
        path = named_config(name)
        if path in paths:
            raise CpgrError(f"{path}: its base leads back to it ({' > '.join(paths)})")
        paths.insert(0, path)
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CpgrError(f"{path}: is no readable YAML: {' '.join(str(error).split())[:200]}") from error
        name = str(content.get("base") or "") if isinstance(content, dict) else ""
    return paths


def name_configs(args: list[str]) -> list[str]:
    """`--config NAME` of a shipped config becomes its path, after the paths of the configs it lies on."""
    out, rest = [], list(args)
    while rest:
        arg = rest.pop(0)
        name = rest.pop(0) if arg == "--config" and rest else arg.removeprefix("--config=") if arg.startswith("--config=") else None
        out += [arg] if name is None else [f"--config={path}" for path in config_files(name)]
    return out


def make_parser(recipe_config: type, recipe: str, prog: str):
    """The parser of a recipe's runs: every field of its dataclass is an option `--section.key`."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(
        prog=f"{prog} {recipe}",
        description=f"Run the recipe {recipe!r} on a data set (default: the built-in world).",
        default_config_files=[str(CONFIGS / f"{name}.yaml") for name in (*recipe_config.shipped, recipe)],
        exit_on_error=True,
    )
    shipped = ", ".join(name for name in shipped_configs() if name != recipe)
    parser.add_argument("--config", action=ActionConfigFile, help=f"a YAML file, or the name of a shipped config: {shipped}")
    parser.add_argument("--base", type=str, default="", help="in a config file: the config it lies on, by file or name")
    parser.add_argument("--recipe", default=recipe, choices=[recipe], help="kept in config.yaml, so that a run says whose it is")
    parser.add_argument("--out", type=str, default=f"runs/{recipe}", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_class_arguments(recipe_config, None)
    return parser


def split_recipe(args: Sequence[str], recipes: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe's name, if the arguments begin with one (default: the first recipe), and the rest."""
    args = list(args)
    if args and not args[0].startswith("-"):
        if args[0] not in recipes:
            raise CpgrError(f"unknown recipe {args[0]!r}; the recipes are {', '.join(recipes)}")
        return args[0], args[1:]
    return recipes[0], args
