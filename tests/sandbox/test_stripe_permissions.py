"""A restricted key may do what its permissions allow, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sandbox.client import SandboxClient, SandboxError
from sandbox.server import Sandbox
from sandbox.state import SandboxState
from sandbox.stripe_api.permissions import OPERATION_PERMISSIONS
from sandbox.stripe_api.provider import StripeApi

KEY = "rk_test_sandbox_1234"


@pytest.fixture
def restricted(server: Sandbox, sandbox: SandboxClient) -> Iterator[httpx.Client]:
    sandbox.settings(restricted_keys={KEY: []})
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def test_each_operation_has_a_permission() -> None:
    assert set(OPERATION_PERMISSIONS) == StripeApi(SandboxState()).operations()


@pytest.mark.parametrize("operation", sorted(OPERATION_PERMISSIONS))
def test_a_key_without_permissions_is_refused_everywhere_and_what_it_needs_is_named(
    restricted: httpx.Client, operation: str
) -> None:
    method, path = operation.replace("{id}", "any").split()
    refused = restricted.request(method, path)
    named = f"rak_{OPERATION_PERMISSIONS[operation][0]}"
    assert refused.status_code == 403
    assert refused.json()["error"] == {
        "message": "The provided key 'rk_****1234' does not have the required permissions for this endpoint on account "
        f"'acct_sandbox'. Having the '{named}' permission would allow this request to continue.",
        "type": "invalid_request_error",
    }


def test_a_permission_to_write_includes_reading_and_no_other_object(
    restricted: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.settings(restricted_keys={KEY: ["rak_customer_write"]})
    made = restricted.post("/v1/customers", data={"name": "Acme"}).raise_for_status().json()["id"]
    assert restricted.get(f"/v1/customers/{made}").status_code == 200
    assert restricted.get("/v1/subscriptions").status_code == 403
    sandbox.settings(restricted_keys={KEY: ["rak_customer_read"]})
    assert restricted.get(f"/v1/customers/{made}").status_code == 200
    assert restricted.post(f"/v1/customers/{made}", data={"name": "B"}).status_code == 403


def test_an_expanded_object_needs_its_permission(restricted: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.settings(restricted_keys={KEY: ["rak_plan_read"]})
    assert restricted.get("/v1/prices").status_code == 200
    refused = restricted.get("/v1/prices", params={"expand[]": "data.product"})
    assert "'rak_product_read'" in refused.json()["error"]["message"]
    sandbox.settings(restricted_keys={KEY: ["rak_plan_read", "rak_product_read"]})
    assert restricted.get("/v1/prices", params={"expand[]": "data.product"}).status_code == 200


def test_either_permission_lets_a_key_read_its_account(restricted: httpx.Client, sandbox: SandboxClient) -> None:
    for name in ("rak_connected_account_read", "rak_accounts_kyc_basic_read"):
        sandbox.settings(restricted_keys={KEY: [name]})
        assert restricted.get("/v1/account").json()["id"] == "acct_sandbox"


def test_a_key_that_no_setting_names_may_do_everything(raw: httpx.Client, restricted: httpx.Client) -> None:
    assert raw.get("/v1/customers").status_code == 200
    assert restricted.get("/v1/customers").status_code == 403


@pytest.mark.parametrize("keys", [{"sk_test_1": ["rak_customer_write"]}, {KEY: ["customer_write"]}])
def test_a_setting_that_stripe_does_not_have_is_refused(sandbox: SandboxClient, keys: dict[str, list[str]]) -> None:
    with pytest.raises(SandboxError, match="restricted_keys"):
        sandbox.settings(restricted_keys=keys)


def test_a_file_of_a_sandbox_that_knew_no_restricted_keys_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.jsonl"
    file.write_text('[["world", "settings", {"limits": false, "stripe_account": "acct_old"}]]\n')
    state = SandboxState(state_file=file)
    state.open()
    assert (state.settings.stripe_account, state.settings.restricted_keys) == ("acct_old", {})
    state.close()
