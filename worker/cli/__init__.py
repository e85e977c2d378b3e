"""The command line, ``billing-sync``. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 the work failed or something was lost, 2 a wrong argument or setting, 130 Ctrl-C.
"""

from worker.cli.app import main

__all__ = ["main"]
