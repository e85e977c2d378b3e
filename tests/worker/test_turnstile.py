"""A crowd is told from fresh changes by its pace, for each biller by itself."""

from __future__ import annotations

import pytest

from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE, SyncRequest
from worker.processes.burst_classifier import INTERACTIVE_BURST_SIZE, BurstClassifier


class Moment:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def moment() -> Moment:
    return Moment()


@pytest.fixture
def turnstile(moment: Moment) -> BurstClassifier:
    return BurstClassifier(lambda _: 16.0, moment)


def rings(many: int, task: str = SYNC_TO_STRIPE) -> list[SyncRequest]:
    return [SyncRequest(task, f"org_{number}") for number in range(many)]


def test_what_comes_faster_than_the_biller_takes_it_is_rung_at_its_pace(turnstile: BurstClassifier) -> None:
    rung = list(turnstile.classify(rings(INTERACTIVE_BURST_SIZE + 100)))
    assert rung[:INTERACTIVE_BURST_SIZE] == rings(INTERACTIVE_BURST_SIZE)
    assert {ring.queue for ring in rung[INTERACTIVE_BURST_SIZE:]} == {"stripe_bulk"}
    assert [ring.delay_seconds for ring in rung[INTERACTIVE_BURST_SIZE:]] == pytest.approx(
        [number / 16 for number in range(100)]
    )


def test_the_end_of_a_long_crowd_is_left_to_the_sweep(turnstile: BurstClassifier, moment: Moment) -> None:
    assert len(list(turnstile.classify(rings(2000)))) == INTERACTIVE_BURST_SIZE + 20 * 16 + 1
    assert list(turnstile.classify(rings(1))) == []
    moment.now = 0.01
    assert list(turnstile.classify(rings(1))) == []


def test_the_change_after_a_crowd_is_fresh_and_so_is_the_other_biller(
    turnstile: BurstClassifier, moment: Moment
) -> None:
    list(turnstile.classify(rings(2000)))
    assert [ring.bulk for ring in turnstile.classify(rings(1, SYNC_TO_LAGO))] == [False]
    moment.now = 0.5
    assert [ring.bulk for ring in turnstile.classify(rings(8))] == [False] * 8


def test_changes_at_the_pace_of_the_biller_are_never_bulk(turnstile: BurstClassifier, moment: Moment) -> None:
    for _ in range(500):
        moment.now += 1 / 16
        assert [ring.bulk for ring in turnstile.classify(rings(1))] == [False]
