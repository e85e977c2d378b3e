"""One sandbox for the tests of a module, empty for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.server import Sandbox
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import StripeCallRecorder, StripeWorld, empty_world, running


@pytest.fixture(scope="module")
def sandbox() -> Iterator[tuple[Sandbox, StripeCallRecorder]]:
    with running() as started:
        yield started


@pytest.fixture
def world(sandbox: tuple[Sandbox, StripeCallRecorder]) -> Iterator[StripeWorld]:
    with empty_world(*sandbox) as world:
        yield world


@pytest.fixture
def attempt(world: StripeWorld) -> InMemoryAttempt:
    return InMemoryAttempt(now=world.now)
