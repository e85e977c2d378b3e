from __future__ import annotations

import threading
import time

import pytest

from worker.config.settings import IN_MEMORY_BROKER_URL, Settings
from worker.processes.thread_pool import ThreadPool
from worker.wiring import celery_app

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("_number", range(4))
def test_a_worker_that_stops_starts_no_task_whose_countdown_ends(
    caplog: pytest.LogCaptureFixture, _number: int
) -> None:
    """Which messages arrive while it stops is chance; without the rule, one of three workers logged tracebacks."""
    app = celery_app.build(Settings(celery_broker_url=IN_MEMORY_BROKER_URL))
    app.control.purge()  # the broker in memory is this process's, and another test may have left messages
    has_started, has_stopped = threading.Event(), threading.Event()

    @app.task(name="test.long", shared=False)
    def long() -> None:
        has_started.set()
        time.sleep(0.5)

    @app.task(name="test.waiting", shared=False)
    def waiting() -> None:
        """Does nothing."""

    def publish() -> None:
        while not has_stopped.is_set():
            waiting.apply_async(countdown=0.1)

    worker = app.WorkController(
        pool=ThreadPool, concurrency=2, without_heartbeat=True, without_mingle=True, without_gossip=True
    )
    threads = [threading.Thread(target=worker.start), threading.Thread(target=publish)]
    try:
        long.delay()
        threads[0].start()
        assert has_started.wait(10)
        threads[1].start()
        time.sleep(0.2)
    finally:
        worker.stop()
        has_stopped.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
