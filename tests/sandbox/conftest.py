"""One sandbox for each test module, emptied for every test, and its clients."""

from collections.abc import Iterator

import httpx
import pytest
import requests
import stripe

from sandbox.client import SandboxClient
from sandbox.server import Sandbox


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox(limits=False) as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox) -> Iterator[SandboxClient]:
    with SandboxClient(server.url) as client:
        client.reset()
        yield client


@pytest.fixture
def billing(server: Sandbox, sandbox: SandboxClient) -> Iterator[stripe.StripeClient]:
    """The real Stripe SDK against the sandbox."""
    assert sandbox.settings()["limits"] is False
    with requests.Session() as session:
        session.trust_env = False
        yield stripe.StripeClient(
            "sk_test_sandbox",
            http_client=stripe.RequestsClient(session=session, timeout=60),
            base_addresses={"api": server.url},
            max_network_retries=0,
        )


@pytest.fixture
def raw(server: Sandbox, sandbox: SandboxClient) -> Iterator[httpx.Client]:
    """Stripe without the SDK, for requests that the SDK does not allow."""
    assert sandbox.settings()["limits"] is False
    headers = {"Authorization": "Bearer sk_test_sandbox"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def lago(server: Sandbox, sandbox: SandboxClient) -> Iterator[httpx.Client]:
    assert sandbox.settings()["limits"] is False
    headers = {"Authorization": "Bearer lago_key"}
    with httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, trust_env=False, timeout=60) as client:
        yield client
