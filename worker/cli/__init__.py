"""The command line, ``billing-sync``. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 the work failed or something was lost, 2 a wrong argument or setting, 130 Ctrl-C.
"""

from __future__ import annotations

from worker.cli import start_up


def main() -> None:
    """The console script."""
    start_up.begins()
    from worker.cli import app

    app.main()
