"""What the scripts share: help, exit codes, and a quiet transformers."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence

from lora2.config.problems import ConfigError
from lora2.hub import HubUnavailable
from lora2.records.files import DiskFull


def command(argv: Sequence[str], about: str, do: Callable[[Sequence[str]], int]) -> int:
    """Run ``do`` on a command's arguments and return the exit code; ``about`` is its help.

    Exit codes, each with a message: 2 for wrong arguments, 1 for a full disk or no hub, 130 for
    Ctrl-C.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(about)
        return 0 if argv else 2
    # transformers warns of its own renamings once per model.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return do(argv)
    except ConfigError as error:
        print(f"{error}\n{about.splitlines()[-1]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; repeat the same command to continue", file=sys.stderr)
        return 130
    except (DiskFull, HubUnavailable) as error:
        print(error, file=sys.stderr)
        return 1


def quiet_transformers() -> None:
    """Hide transformers' progress bars and its warning that a new head is untrained."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
