"""A run's config, put together from the dataclass beside each part; YAML, command line and `--print_config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from .data.proposals import ProposalConfig
from .data.readers import DataConfig
from .errors import CpgrError

CONFIGS = Path(__file__).parent / "recipes" / "configs"


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
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise CpgrError(f"no config file {name!r}, and none of that name ships with the package ({names})")


def name_configs(args: list[str]) -> list[str]:
    """`--config NAME` of a shipped config becomes its path."""
    out = list(args)
    for i, arg in enumerate(out):
        if arg == "--config" and i + 1 < len(out):
            out[i + 1] = named_config(out[i + 1])
        elif arg.startswith("--config="):
            out[i] = "--config=" + named_config(arg.removeprefix("--config="))
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
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file, or the name of a shipped config")
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
