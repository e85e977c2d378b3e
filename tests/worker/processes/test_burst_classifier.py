"""A crowd is told from fresh changes by its pace, for each biller by itself."""

from __future__ import annotations

import pytest

from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE, SyncRequest
from worker.processes.burst_classifier import INTERACTIVE_BURST_SIZE, BurstClassifier


class ClassifierClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def moment() -> ClassifierClock:
    return ClassifierClock()


@pytest.fixture
def classifier(moment: ClassifierClock) -> BurstClassifier:
    return BurstClassifier(lambda _: 16.0, moment)


def sync_requests(many: int, task: str = SYNC_TO_STRIPE) -> list[SyncRequest]:
    return [SyncRequest(task, f"org_{number}") for number in range(many)]


def test_what_comes_faster_than_the_biller_takes_it_is_rung_at_its_pace(classifier: BurstClassifier) -> None:
    classified = list(classifier.classify(sync_requests(INTERACTIVE_BURST_SIZE + 100)))
    assert classified[:INTERACTIVE_BURST_SIZE] == sync_requests(INTERACTIVE_BURST_SIZE)
    assert {request.queue for request in classified[INTERACTIVE_BURST_SIZE:]} == {"stripe_bulk"}
    assert [request.delay_seconds for request in classified[INTERACTIVE_BURST_SIZE:]] == pytest.approx(
        [number / 16 for number in range(100)]
    )


def test_the_end_of_a_long_crowd_is_left_to_the_sweep(classifier: BurstClassifier, moment: ClassifierClock) -> None:
    assert len(list(classifier.classify(sync_requests(2000)))) == INTERACTIVE_BURST_SIZE + 20 * 16 + 1
    assert list(classifier.classify(sync_requests(1))) == []
    moment.now = 0.01
    assert list(classifier.classify(sync_requests(1))) == []


def test_the_change_after_a_crowd_is_fresh_and_so_is_the_other_biller(
    classifier: BurstClassifier, moment: ClassifierClock
) -> None:
    list(classifier.classify(sync_requests(2000)))
    assert [request.bulk for request in classifier.classify(sync_requests(1, SYNC_TO_LAGO))] == [False]
    moment.now = 0.5
    assert [request.bulk for request in classifier.classify(sync_requests(8))] == [False] * 8


def test_changes_at_the_pace_of_the_biller_are_never_bulk(classifier: BurstClassifier, moment: ClassifierClock) -> None:
    for _ in range(500):
        moment.now += 1 / 16
        assert [request.bulk for request in classifier.classify(sync_requests(1))] == [False]
