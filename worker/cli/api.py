"""``billing-sync api``: the API as a process of its own, any number of them behind one address.

Its libraries are loaded when it runs; a worker holds none of them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli import output, resources
from worker.cli.exit_codes import CommandFailedError
from worker.cli.run import stop_on_signal
from worker.config import api as api_settings
from worker.config import settings as settings_of
from worker.config.api import DEFAULT_API_PORT
from worker.wiring import logging

API_CHECK_SECONDS = 1.0  # seconds


def api(
    *,
    host: Annotated[str | None, typer.Option(help="Where to listen; else API_HOST, this machine alone.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="0 takes a free one; else API_PORT or 8080.")
    ] = None,
) -> None:
    """Serve the API; run as many as you need. /docs describes it."""
    from worker.wiring import api as api_wiring

    settings, server_settings = settings_of.read(), api_settings.read()
    chosen_port = server_settings.api_port if port is None else port
    overrides = {
        "api_host": host or server_settings.api_host,
        "api_port": DEFAULT_API_PORT if chosen_port is None else chosen_port,
    }
    logging.configure(settings)
    resources.make_database_folder(settings)
    with (
        stop_on_signal() as stopping,
        api_wiring.serve(settings, server_settings.model_copy(update=overrides)) as server,
    ):
        output.show(f"The API listens on {server.url}; {server.url}/docs describes it. Stop it with Ctrl-C.")
        while not stopping.wait(API_CHECK_SECONDS):
            if not server.is_alive:
                message = "the API ended by itself: see the log above, then start it again"
                raise CommandFailedError(message)
