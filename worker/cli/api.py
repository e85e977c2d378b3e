"""``billing-sync api``: the API as a process of its own, any number of them behind one address.

Its libraries are loaded when it runs; a worker holds none of them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli import output, resources
from worker.cli.exit_codes import FailedError
from worker.cli.run import stop_asked
from worker.config import api as api_settings
from worker.config import settings as settings_of
from worker.config.api import PORT
from worker.wiring import logging

LOOK_EVERY = 1.0  # seconds


def api(
    *,
    host: Annotated[str | None, typer.Option(help="Where to listen; else API_HOST, this machine alone.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="0 takes a free one; else API_PORT or 8080.")
    ] = None,
) -> None:
    """Serve the API; run as many as you need. /docs describes it."""
    from worker.wiring import api as api_wiring

    settings, own = settings_of.read(), api_settings.read()
    asked = own.api_port if port is None else port
    given = {"api_host": host or own.api_host, "api_port": PORT if asked is None else asked}
    logging.configure(settings)
    resources.make_folder(settings)
    with stop_asked() as stopping, api_wiring.api(settings, own.model_copy(update=given)) as served:
        output.show(f"The API listens on {served.url}; {served.url}/docs describes it. Stop it with Ctrl-C.")
        while not stopping.wait(LOOK_EVERY):
            if not served.alive:
                message = "the API ended by itself: see the log above, then start it again"
                raise FailedError(message)
