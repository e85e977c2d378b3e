"""The command ``billing-sync api``: the API as a process of its own. Any number of them can run behind one address."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from worker.cli import output, resources
from worker.cli.exit_codes import CommandFailedError
from worker.cli.run import stop_on_signal, wait_for_database
from worker.config import api as api_settings
from worker.config import settings as settings_of
from worker.config.api import DEFAULT_API_PORT
from worker.processes.heartbeat import heartbeat
from worker.wiring import api as api_wiring
from worker.wiring import logging
from worker.wiring.database import connect

API_CHECK_SECONDS = 1.0  # seconds


def api(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: API_HOST, else only this machine.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port to listen on, 0 for any free one; default: API_PORT, else 8080."),
    ] = None,
) -> None:
    """Serve the API; run as many as you need. Its documentation is at /docs."""
    settings, server_settings = settings_of.read(), api_settings.read()
    chosen_port = server_settings.api_port if port is None else port
    overrides = {
        "api_host": host or server_settings.api_host,
        "api_port": DEFAULT_API_PORT if chosen_port is None else chosen_port,
    }
    resources.warn_of_weak_tls(settings)
    logging.configure(settings)
    resources.make_database_folder(settings)
    wait_for_database(settings, for_writes=False)
    with (
        stop_on_signal() as stopping,
        api_wiring.serve(settings, server_settings.model_copy(update=overrides)) as server,
        closing(connect(settings, pool_size=1)) as database,
        heartbeat(database, "api"),
    ):
        output.show(f"The API listens on {server.url}; docs at {server.url}/docs; stop it with Ctrl-C.")
        while not stopping.wait(API_CHECK_SECONDS):
            if not server.is_alive:
                message = "the API stopped unexpectedly: see the log above, then start it again"
                raise CommandFailedError(message)
