"""The periodic tasks in observe mode, and after it: what was read in the other mode, or long ago, is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import IntegrityError

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink, LinkState
from core.db.models.jobs import JobLock
from core.db.models.organizations import Management, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tasks import missed_webhooks, sweep
from tasks.base import BillingApp
from worker.config.settings import Settings
from worker.wiring.celery_app import build

OpenApp = Callable[[Management], BillingApp]


@pytest.fixture
def app_in(database: Database, tmp_path: Path) -> Iterator[OpenApp]:
    opened: list[BillingApp] = []

    def open_app(mode: Management) -> BillingApp:
        settings = {
            "data_dir": tmp_path,
            "database_url": database.url.render_as_string(hide_password=False),
            "celery_broker_url": "memory://",
            "plans_file": DEFAULT_PLANS_FILE,
            "stripe_secret_key": "sk_test_nobody",
            "stripe_api_base": "http://127.0.0.1:1",
            "lago_api_key": "nobody",
            "lago_api_url": "http://127.0.0.1:1",
            "lago_stripe_provider_code": "stripe_main",
            "management": mode,
        }
        opened.append(build(Settings.model_validate(settings)))
        return opened[-1]

    yield open_app
    for app in opened:
        app.close_runtime()


def create(
    database: Database, plans: Catalog, name: str, *, applied_version: int = 0, state: LinkState = "active"
) -> str:
    """Its links are due now."""
    with database.write() as session:
        change = ChangeContext(session, utc_now())
        org_id = commands.create(change, NewOrganization(name=name, plan_tier="starter"), plans).id
        values = {"applied_version": applied_version, "state": state, "next_sweep_at": utc_now()}
        session.execute(update(BillingLink).where(BillingLink.org_id == org_id).values(values))
    return org_id


def sweep_a_minute_later(database: Database, app: BillingApp) -> None:
    with database.write() as session:
        session.execute(delete(JobLock))
    sweep.run(app)


def states(database: Database, org_id: str) -> set[str]:
    with database.read() as session:
        return set(session.scalars(select(BillingLink.state).where(BillingLink.org_id == org_id)))


def checks(database: Database, org_id: str) -> set[int]:
    with database.read() as session:
        return set(session.scalars(select(BillingLink.checks_requested).where(BillingLink.org_id == org_id)))


def test_what_an_old_worker_observes_again_is_resumed_again(
    database: Database, plans: Catalog, app_in: OpenApp
) -> None:
    """While a new worker has the new setting, an old one still goes by the old one."""
    org_id = create(database, plans, "Acme")
    app = app_in("manage")
    for _ in range(3):
        with database.write() as session:
            session.execute(update(BillingLink).values(state="observed"))
        sweep_a_minute_later(database, app)
        assert states(database, org_id) == {"active"}


def test_what_was_in_sync_is_read_once_when_the_installation_observes(
    database: Database, plans: Catalog, app_in: OpenApp
) -> None:
    in_sync = create(database, plans, "Acme", applied_version=1)
    behind = create(database, plans, "Globex")
    managed = create(database, plans, "Initech", applied_version=1)
    with database.write() as session:
        session.get_one(Organization, managed).management = "manage"
    app = app_in("observe")
    for _ in range(2):
        sweep_a_minute_later(database, app)
        assert [checks(database, each) for each in (in_sync, behind, managed)] == [{1}, {0}, {0}]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_link_that_cannot_be_resumed_keeps_nobody_waiting(
    database: Database, plans: Catalog, app_in: OpenApp
) -> None:
    create(database, plans, "Acme", state="observed")
    create(database, plans, "Globex")
    with database.write() as session:
        session.execute(
            text(
                "CREATE TRIGGER no_resume BEFORE UPDATE ON billing_links WHEN OLD.state = 'observed' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
    with pytest.raises(IntegrityError):
        sweep.run(app_in("manage"))
    with database.read() as session:
        assert not session.scalars(
            select(BillingLink.org_id).where(BillingLink.state == "active", BillingLink.next_sweep_at <= utc_now())
        ).all()


def test_an_observed_link_is_read_once_a_day_at_both_providers(
    database: Database, plans: Catalog, app_in: OpenApp
) -> None:
    """Also at Stripe, whose events say nothing of a change of our catalog. What is managed is not read there."""
    observed = create(database, plans, "Acme", state="observed")
    managed = create(database, plans, "Globex", applied_version=1)
    with database.write() as session:
        long_ago = utc_now() - timedelta(hours=25)
        session.execute(update(BillingLink).values(routine_check_at=long_ago, subscription_id="sub_1"))
    app = app_in("manage")
    for _ in range(2):
        with database.write() as session:
            session.execute(delete(JobLock))
        missed_webhooks.run(app)
        assert checks(database, observed) == {1}
        with database.read() as session:
            assert session.get_one(BillingLink, (managed, "stripe")).checks_requested == 0
