"""The relay alone: what the broker did not take is not marked, and waits for nobody's lease."""

from __future__ import annotations

from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from sqlalchemy import select

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.events import Event
from core.events.event_types import Cause, ChangeContext
from core.organizations.commands import NewOrganization, create
from worker.config.settings import Settings
from worker.processes.relay import Relay
from worker.wiring.celery_app import build


def test_what_a_broker_that_is_away_did_not_take_is_pending_again_at_once(
    database: Database, plans: Catalog, tmp_path: Path
) -> None:
    with database.write() as session:
        create(
            ChangeContext(session, utc_now(), Cause(actor="test")),
            NewOrganization(name="Acme", plan_tier="starter"),
            plans,
        )
    app = build(
        Settings.model_validate(
            {
                "data_dir": tmp_path,
                "database_url": database.url.render_as_string(hide_password=False),
                # Nobody listens on this port, so a connection is refused.
                "celery_broker_url": "redis://127.0.0.1:1/0",
                "plans_file": DEFAULT_PLANS_FILE,
                "stripe_secret_key": "sk_test_nobody",
                "stripe_api_base": "http://127.0.0.1:1",
                "lago_api_key": "nobody",
                "lago_api_url": "http://127.0.0.1:1",
                "lago_stripe_provider_code": "stripe_main",
            }
        )
    )
    try:
        with pytest.raises(OperationalError):
            Relay(app, database).relay_once()
    finally:
        app.close_runtime()
    with database.read() as session:
        [event] = session.scalars(select(Event))
        assert event.published_at is None
        assert event.lease_until is None
