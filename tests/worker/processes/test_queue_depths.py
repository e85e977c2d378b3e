"""The depth of each queue as the broker counts it, and no number while it does not."""

from __future__ import annotations

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry

from tasks import queue
from tasks.routing import QUEUES, SYNC_TO_LAGO, SyncRequest
from tests.support.deployment import free_port
from tests.support.metrics_page import value, values_of
from worker.config.settings import Settings
from worker.processes.queue_depths import QueueDepths
from worker.wiring import celery_app


@pytest.fixture(params=["redis", pytest.param("rabbit", marks=pytest.mark.slow)])
def app(request: pytest.FixtureRequest) -> Celery:
    return celery_app.build(Settings(celery_broker_url=request.getfixturevalue(f"{request.param}_url")))


def depths_of(app: Celery) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(QueueDepths(app))
    return registry


def test_a_message_counts_in_the_queue_in_which_it_waits(app: Celery) -> None:
    registry = depths_of(app)
    assert [value(values_of(registry), "queue_depth", queue=each) for each in QUEUES] == [0.0] * len(QUEUES)
    queue.publish(app, [SyncRequest(SYNC_TO_LAGO, f"org_{number}") for number in range(3)])
    found = values_of(registry)
    assert (value(found, "queue_depth", queue="lago"), value(found, "queue_depth", queue="stripe")) == (3, 0)


def test_a_broker_that_is_away_has_no_depths() -> None:
    app = celery_app.build(Settings(celery_broker_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert values_of(depths_of(app)) == {}
