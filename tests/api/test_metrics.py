"""Metrics: what the rows say at the moment of the scrape, and nothing that names anybody."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from api.metrics import HttpMetrics
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.backups import BackupRecord
from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftReportRecord
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.flow_control import circuit_breaker
from core.inbox import provider_webhooks
from core.reporting import metrics
from core.reporting.metrics import StoreMetrics
from tests.support.api_client import Api
from tests.support.metrics_page import Values, value, values
from tests.support.query_plans import FEW, plans_of
from tests.support.waiting import until

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/reference/metrics.md"


def scraped(api: Api) -> Values:
    answer = api.get("/metrics", api.as_service("metrics:read"))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return values(answer.text)


def shown(database: Database, at: Callable[[], datetime] = utc_now) -> Values:
    def read() -> StoreMetrics:
        with database.read() as session:
            return metrics.read(session, at())

    return values(HttpMetrics(read, at).render().decode())


def test_links_are_counted_by_what_they_wait_for(api: Api) -> None:
    for _ in range(3):
        api.organization()
    parked, held, _ = [api.organization() for _ in range(3)]
    with api.database.write() as session:
        for org_id, state in ((parked, "parked"), (held, "on_hold")):
            link = (BillingLink.org_id == org_id, BillingLink.provider == "lago")
            session.execute(update(BillingLink).where(*link).values(state=state))
        overdue = (BillingLink.org_id == parked, BillingLink.provider == "lago")
        session.execute(update(BillingLink).where(*overdue).values(payment_status="overdue"))
        left = (BillingLink.org_id == held, BillingLink.provider == "stripe")
        session.execute(update(BillingLink).where(*left).values(credit_amount=500, credit_currency="USD"))
    found = shown(api.database, lambda: utc_now() + timedelta(minutes=5))
    assert [value(found, f"links_{what}", provider="lago") for what in ("behind", "parked", "on_hold")] == [4, 1, 1]
    assert [value(found, f"links_{what}", provider="stripe") for what in ("behind", "parked", "on_hold")] == [6, 0, 0]
    assert value(found, "payment_problems", provider="lago", status="overdue") == 1
    assert value(found, "payment_problems", provider="lago", status="failed") == 0
    assert (value(found, "credit_left", provider="stripe"), value(found, "credit_left", provider="lago")) == (1, 0)
    age = value(found, "links_oldest_behind_seconds", provider="stripe")
    assert age is not None
    assert 300 <= age < 360


def test_a_stopped_biller_shows_for_what_reason(api: Api) -> None:
    with api.database.write() as session:
        circuit_breaker.open_for_wrong_account(session, "stripe", "the key is of another account", utc_now())
    found = shown(api.database)
    assert value(found, "provider_breaker_open", provider="stripe", reason="wrong_account") == 1
    assert value(found, "provider_breaker_open", provider="stripe", reason="unavailable") == 0
    assert value(found, "provider_breaker_open", provider="lago", reason="wrong_account") == 0


def test_a_provider_whose_webhooks_are_refused_shows(api: Api) -> None:
    provider_webhooks.record_refusal(api.database, "lago", utc_now())
    found = shown(api.database)
    refused = [value(found, "provider_webhooks_refused", provider=provider) for provider in ("lago", "stripe")]
    assert (refused, value(found, "database_read_only")) == ([1, 0], 0)


def test_the_newest_backup_shows_its_age_and_none_shows_nothing(api: Api) -> None:
    assert value(shown(api.database), "backup_age_seconds") is None
    with api.database.write() as session:
        session.add(BackupRecord(file="billing-sync-1", taken_at=utc_now() - timedelta(hours=1), size=1))
    age = value(shown(api.database), "backup_age_seconds")
    assert age is not None
    assert 3600 <= age < 3700


def test_the_last_comparison_shows_its_age_and_what_it_found_and_none_shows_nothing(api: Api) -> None:
    assert value(shown(api.database), "drift_report_age_seconds") is None
    began = utc_now() - timedelta(hours=1)
    with api.database.write() as session:
        session.execute(
            insert(DriftReportRecord).values(
                run_id="r",
                report_id="p",
                lease_token="t",
                stage="done",
                processed=0,
                counts={"drifted": 3, "kinds": {"renamed": 2, "missing": 1}},
                started_at=began,
                heartbeat_at=began,
                finished_at=began,
            )
        )
    found = shown(api.database)
    age = value(found, "drift_report_age_seconds")
    assert age is not None
    assert 3600 <= age < 3700
    assert value(found, "drift_organizations") == 3
    assert value(found, "drift_findings", kind="renamed") == 2


def test_what_the_relay_has_not_published_shows(api: Api) -> None:
    api.organization(u1="owner")
    assert value(shown(api.database), "events_pending") == 2
    with api.database.write() as session:
        session.execute(update(Event).values(published_at=utc_now()))
    found = shown(api.database)
    assert (value(found, "events_pending"), value(found, "events_oldest_pending_seconds")) == (0, 0)


@one_database
def test_requests_are_counted_by_route_and_status_and_no_label_names_anybody(api: Api) -> None:
    org_id = api.organization(u1="owner")
    for _ in range(3):
        api.get(f"/api/organizations/{org_id}", api.as_("u1"))
    api.get(f"/api/organizations/{org_id}", api.as_("stranger"))
    api.get("/api/users/somebody@acme.test/organizations", api.as_("u1"))
    api.get("/nowhere/somebody@acme.test")
    api.http.request("BREW", "/healthz")
    found = counted(api, 7)
    route = "/api/organizations/{org_id}"
    assert value(found, "http_requests_total", method="GET", route=route, status="200") == 3
    assert value(found, "http_requests_total", method="GET", route=route, status="404") == 1
    assert value(found, "http_requests_total", method="GET", route="none", status="404") == 1
    assert value(found, "http_request_seconds_count", method="GET", route=route) == 4
    labels = str(sorted(map(str, found)))
    assert "other" in labels
    for private in ("acme.test", org_id, "BREW", "stranger", "u1"):
        assert private not in labels


def counted(api: Api, requests: int) -> Values:
    """A request counts once its answer is sent; the client may be a moment ahead of that."""
    found: Values = {}

    def are_counted() -> bool:
        found.update(scraped(api))
        return sum(each for (name, _), each in found.items() if name.endswith("requests_total")) >= requests

    until(are_counted, f"{requests} requests")
    return found


@one_database
def test_only_a_service_with_the_scope_reads_them(api: Api) -> None:
    assert api.get("/metrics").status_code == 401
    assert api.get("/metrics", api.as_("u1")).status_code == 403
    assert api.get("/metrics", api.as_service("organizations:read")).status_code == 403


@one_database
def test_however_many_scrape_the_rows_are_read_once_in_a_while(database: Database) -> None:
    reads: list[int] = []

    def read() -> StoreMetrics:
        reads.append(1)
        with database.read() as session:
            return metrics.read(session, utc_now())

    measures = HttpMetrics(read, utc_now)
    for _ in range(10):
        measures.render()
    assert len(reads) == 1


def test_at_ten_thousand_organizations_only_what_waits_is_read(large: Database) -> None:
    found: list[StoreMetrics] = []
    plans = plans_of(large, lambda session: found.append(metrics.read(session, utc_now())))
    assert (found[0].links["lago"].behind, found[0].events_pending) == (FEW, FEW)
    assert "ix_billing_links_due" in plans
    assert "ix_billing_links_parked" in plans
    assert "ix_events_unpublished" in plans
    assert "Seq Scan on billing_links" not in plans
    assert "SCAN billing_links'" not in plans
    assert "Seq Scan on organizations" not in plans


@one_database
def test_the_document_names_each_metric_and_no_other(api: Api) -> None:
    text = api.get("/metrics", api.as_service("metrics:read")).text
    served = {name for line in text.splitlines() if line.startswith("# TYPE") for name in line.split()[2:3]}
    named = set(re.findall(r"^\| `(\w+)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    only_after_a_comparison = {
        f"billing_sync_drift_{each}" for each in ("report_age_seconds", "organizations", "findings")
    }
    only_after_a_backup = {"billing_sync_backup_age_seconds"}
    only_on_their_own_port = {f"billing_sync_{each}" for each in ("build_info", "queue_depth")} | {
        f"billing_sync_disk_{each}_bytes" for each in ("free", "size")
    }
    unasked = {name for name in served if name.endswith("_created")}
    assert served - unasked | only_after_a_comparison | only_after_a_backup | only_on_their_own_port == named


@one_database
def test_service_events_are_counted_while_they_wait_and_for_an_hour_after_a_rejection(api: Api) -> None:
    now = utc_now()
    with api.database.write() as session:
        for number, (status, age) in enumerate((("waiting", 3), ("rejected", 0), ("rejected", 2), ("applied", 0))):
            values_of_row = {"source": "/signup", "id": str(number), "status": status, "received_at": now}
            rejected_at = now - timedelta(hours=age) if status == "rejected" else None
            session.execute(insert(ServiceEvent).values(**values_of_row, rejected_at=rejected_at))
    found = shown(api.database)
    assert value(found, "waiting", what="service_events") == 1
    assert value(found, "failed", what="service_events") == 1
