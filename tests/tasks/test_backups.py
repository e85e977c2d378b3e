"""A worker takes a backup when one is due, one worker at a time, and goes on after a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from core.backup import backups as taken_backups
from core.catalog.plans import DEFAULT_PLANS_FILE
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.jobs import JobLock
from tasks import backups
from tasks.base import BillingApp
from tests.support.waiting import until
from worker.config.settings import Settings
from worker.wiring.celery_app import build

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

A_DAY = timedelta(days=1)
A_MONTH = timedelta(days=30)


@pytest.fixture
def settings(database: Database, tmp_path: Path) -> dict[str, object]:
    return {
        "data_dir": tmp_path,
        "database_url": database.url.render_as_string(hide_password=False),
        "celery_broker_url": "memory://",
        "plans_file": DEFAULT_PLANS_FILE,
        "stripe_secret_key": "sk_test_nobody",
        "stripe_api_base": "http://127.0.0.1:1",
        "lago_api_key": "nobody",
        "lago_api_url": "http://127.0.0.1:1",
        "lago_stripe_provider_code": "stripe_main",
        "backup_dir": tmp_path / "backups",
    }


@pytest.fixture
def app(settings: dict[str, object]) -> Iterator[BillingApp]:
    opened = build(Settings.model_validate(settings))
    yield opened
    opened.close_runtime()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def test_one_is_taken_when_it_is_due(app: BillingApp, folder: Path) -> None:
    with capture_logs() as lines:
        taken = backups.run(app, folder, A_DAY, A_MONTH)
    assert taken is not None
    assert [line["file"] for line in lines if line["event"] == "backup_taken"] == [taken.path.name]
    assert backups.run(app, folder, A_DAY, A_MONTH) is None
    until(lambda: utc_now() >= taken.manifest.taken_at + timedelta(seconds=1), "another second")
    assert backups.run(app, folder, timedelta(seconds=1), A_MONTH) is not None


def test_two_workers_take_one(app: BillingApp, folder: Path) -> None:
    threads = [threading.Thread(target=backups.run, args=(app, folder, A_DAY, A_MONTH)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(taken_backups.listed(folder))) == 1


def test_after_a_failure_it_is_tried_again_later(app: BillingApp, database: Database, folder: Path) -> None:
    folder.write_text("a file where the folder belongs")
    with capture_logs() as lines:
        assert backups.run(app, folder, A_DAY, A_MONTH) is None
        assert backups.run(app, folder, A_DAY, A_MONTH) is None
    (failed,) = [line for line in lines if line["event"] == "backup_failed"]
    assert str(folder) in failed["error"]
    folder.unlink()
    with database.write() as session:
        session.execute(update(JobLock).values(lease_until=utc_now()))
    assert backups.run(app, folder, A_DAY, A_MONTH) is not None


def test_it_is_scheduled_if_a_folder_is_set(settings: dict[str, object]) -> None:
    scheduled = build(Settings.model_validate(settings)).conf.beat_schedule["backup"]
    assert scheduled["args"] == [str(settings["backup_dir"]), 24.0, "30d"]
    assert "backup" not in build(Settings.model_validate(settings | {"backup_dir": None})).conf.beat_schedule
