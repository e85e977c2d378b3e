"""What is routine is no line at INFO, and nothing else is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from celery.app import trace

from tasks.routing import PERIODIC_TASKS, SWEEP, SYNC_TO_STRIPE
from worker.config.settings import Settings
from worker.wiring.celery_app import build
from worker.wiring.logging import is_written

SUCCESS = trace.LOG_SUCCESS.strip()
RECEIVED = trace.LOG_RECEIVED.strip()
FAILURE = trace.LOG_FAILURE.strip()
IGNORED = trace.LOG_IGNORED.strip()


@pytest.fixture(params=["INFO", "DEBUG"])
def level(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> str:
    """The level that the process logs at."""
    caplog.set_level(request.param)
    return str(request.param)


def is_shown(name: str, message: str, task: str, level: int = logging.INFO, description: str = "") -> bool:
    """Whether Celery's line about a task is written, with the values that Celery passes."""
    context = {"id": "1", "name": task, "return_value": "None", "runtime": 0.1, "description": description, "exc": ""}
    return is_written(logging.getLogger(name).makeRecord(name, level, "file", 1, message, (context,), None))


@pytest.mark.parametrize("task", sorted(PERIODIC_TASKS))
def test_periodic_tasks_are_shown_at_debug_only(level: str, task: str) -> None:
    shown = level == "DEBUG"
    assert is_shown("celery.worker.strategy", RECEIVED, task) is shown
    assert is_shown("celery.app.trace", SUCCESS, task) is shown
    message, arguments = "Scheduler: Sending due task %s (%s)", ("sweep", task)
    record = logging.getLogger("celery.beat").makeRecord("celery.beat", 20, "file", 1, message, arguments, None)
    assert is_written(record) is shown


def test_all_tasks_of_the_schedule_are_periodic_ones() -> None:
    schedule = build(Settings(plan_every_hours=1, backup_dir=Path("backups"))).conf.beat_schedule
    assert {entry["task"] for entry in schedule.values()} == PERIODIC_TASKS


def test_a_periodic_task_that_fails_is_shown(level: str) -> None:
    assert level
    assert is_shown("celery.app.trace", FAILURE, SWEEP, logging.ERROR, "raised unexpected")
    assert is_shown("celery.app.trace", trace.LOG_RETRY.strip(), SWEEP)


def test_every_other_task_is_shown_but_for_the_line_that_gives_no_reason(level: str) -> None:
    assert is_shown("celery.worker.strategy", RECEIVED, SYNC_TO_STRIPE)
    assert is_shown("celery.app.trace", SUCCESS, SYNC_TO_STRIPE)
    assert is_shown("celery.app.trace", FAILURE, SYNC_TO_STRIPE, description="raised expected")
    assert is_shown("celery.app.trace", IGNORED, SYNC_TO_STRIPE, description="ignored") is (level == "DEBUG")
