"""`python -m cpgr.run [RECIPE] [--config FILE] [--out DIR] [--seed N] [--cycles N] [--section.key value ...]`, and
`python -m cpgr.run ablation [--arms A,B] [--seeds 0,1,2]`: many such runs and a table of them."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence

from . import ablation, execution, processes
from .errors import CpgrError

log = logging.getLogger("cpgr")


def main(argv: Sequence[str] | None = None, prog: str = "python -m cpgr.run") -> int:
    """Run a recipe from the command line; returns the exit code."""
    try:
        signal.signal(signal.SIGTERM, _stop)  # a batch system's way of saying Ctrl-C
    except ValueError:
        pass  # not in the main thread
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["ablation"]:
            return ablation.command(argv[1:], f"{prog} ablation")
        return processes.leave(execution.command(argv, prog))
    except CpgrError as error:
        log.debug("", exc_info=True)
        return processes.leave(2, f"error: {error}")
    except KeyboardInterrupt:
        return processes.leave(130, "\nstopped; the same command with --resume goes on from here")
    except Exception as error:
        if processes.lost(error):
            log.debug("", exc_info=True)
            return processes.leave(3)  # the process that failed says why
        if processes.count() > 1:
            return processes.leave(1, f"{traceback.format_exc()}error: process {processes.index()} failed")
        raise


def _stop(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
