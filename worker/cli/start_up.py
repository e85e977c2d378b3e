"""While the program starts, Ctrl-C ends it at once with exit code 130, and no garbage is collected.

An import that is interrupted would print a traceback, or an imported module would take the interrupt for its own
error. Nothing is open yet, so there is nothing to close. A collection finds no garbage while modules are imported; it
costs a fifth of the time.
"""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 130


def begins() -> None:
    """A process that ignores SIGINT, as one in the background does, goes on to ignore it."""
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def ends() -> None:
    """From here on Ctrl-C is a ``KeyboardInterrupt``, so that a command can close what it opened."""
    gc.freeze()  # what was imported stays until the process ends
    gc.enable()
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)
