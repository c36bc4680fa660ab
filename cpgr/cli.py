"""The `cpgr` command. Every subcommand lives in `cpgr.commands` and imports what it needs when it runs, so that
`cpgr --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands import COMMANDS, load
from .errors import CpgrError

MISTAKE, STOPPED, CLOSED = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code: 0, 1 (`doctor` found a fault), 2 (an error the user can mend), 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["run"]:
            # The run's options come from its recipe's config: its own parser knows them.
            from . import run

            return run.main(argv[1:], prog="cpgr run")
        args, rest = _parser().parse_known_args(argv)
        if rest and not getattr(args, "takes_more", False):
            args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.more = rest
        return args.command(args)
    except SystemExit as end:  # argparse: its message is printed already
        return end.code if isinstance(end.code, int) else MISTAKE
    except BrokenPipeError:
        # The reader of our output has enough (`| head`); nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except (CpgrError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="cpgr",
        description="Find the region an expression names; train such models from images and expressions alone.",
        epilog="`cpgr COMMAND --help` explains a command. Start with `cpgr doctor`, then `cpgr run`.",
    )
    parser.add_argument("--version", action="version", version=f"cpgr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("run", help="train: run a recipe's cycles and write its report")
    for name, summary in COMMANDS.items():
        own = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        own.set_defaults(parser=own)
        load(name).add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
