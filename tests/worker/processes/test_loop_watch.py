"""Worker and beat go on while they wait for their broker, and a worker that ends does not wait."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from structlog.testing import capture_logs

from tests.support.deployment import free_port
from worker.config.settings import Settings
from worker.processes.loop_watch import WatchedScheduler, WorkerLoopWatch
from worker.wiring.celery_app import build


def scheduler(broker: str, folder: Path, marks: list[str]) -> WatchedScheduler:
    app = build(Settings(celery_broker_url=broker))
    app.conf.broker_connection_max_retries = 2
    made = WatchedScheduler(app=app, schedule_filename=str(folder / "schedule"))
    made.on_progress = lambda: marks.append("mark")
    return made


def test_each_tick_is_progress(redis_url: str, tmp_path: Path) -> None:
    marks: list[str] = []
    opened = scheduler(redis_url, tmp_path, marks)
    opened.tick()
    assert marks == ["mark"]
    opened.close()


@pytest.mark.slow
def test_each_attempt_to_reach_the_broker_is_progress(tmp_path: Path) -> None:
    marks: list[str] = []
    opened = scheduler(f"redis://127.0.0.1:{free_port()}/0", tmp_path, marks)
    with capture_logs() as logs, pytest.raises(OperationalError):
        _ = opened.producer
    assert len(marks) == 2
    assert {(each["event"], each["error"]) for each in logs} == {("beat_waits_for_broker", "ConnectionError")}
    opened.close()


@pytest.mark.filterwarnings("ignore::celery.exceptions.SecurityWarning")
def test_a_worker_without_a_connection_goes_on_until_it_shuts_down() -> None:
    app = build(Settings(celery_broker_url=f"redis://127.0.0.1:{free_port()}/0"))
    worker = app.Worker(pool_cls="threads", concurrency=1, quiet=True)
    watch = WorkerLoopWatch(worker, max_standstill=0.05)
    time.sleep(0.1)
    assert not watch.is_stalled()
    worker.terminate()
    time.sleep(0.1)
    assert watch.is_stalled()
