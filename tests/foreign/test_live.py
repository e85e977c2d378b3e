"""`make live` refuses what it must not touch, before it sends anything, and says which setting is wrong."""

from __future__ import annotations

import pytest

from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.foreign.live import (
    LiveAccounts,
    LiveRefusedError,
    accounts_of,
    refuse_foreign_customers,
    refuse_live_account,
)

COMPLETE = {
    "STRIPE_SECRET_KEY": "sk_test_of_a_user",
    "LAGO_API_URL": "http://127.0.0.1:1",
    "LAGO_API_KEY": "lago-key",
}


@pytest.mark.parametrize("key", ["sk_live_secret", "rk_live_secret", "sk_org_secret", "whsec_secret", "sk_test_"])
def test_a_key_that_is_not_one_of_test_mode_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(LiveRefusedError, match="no test key") as refused:
        accounts_of({**COMPLETE, "STRIPE_SECRET_KEY": key})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(LiveRefusedError, match=name):
        accounts_of({**COMPLETE, name: ""})


def test_a_restricted_test_key_is_accepted_and_stripe_is_the_default() -> None:
    accounts = accounts_of({**COMPLETE, "STRIPE_SECRET_KEY": "rk_test_of_a_user"})
    assert accounts.stripe_url == "https://api.stripe.com"
    assert accounts.settings == {"LAGO_MANUAL_PAYMENTS": "true"}


def test_customers_of_former_runs_are_accepted_and_any_other_is_refused() -> None:
    of_runs = ["org_live_0a1b2c3d_acme", "org_live_ffffffff_lostplan"]
    refuse_foreign_customers(of_runs)
    with pytest.raises(LiveRefusedError, match="1 customers that no such run made"):
        refuse_foreign_customers([*of_runs, "org_live_acme"])


def test_a_lago_organization_with_somebody_elses_customer_is_refused_and_untouched() -> None:
    with Sandbox().start() as server, SandboxClient(server.url) as sandbox:
        sandbox.preload_lago_customers([{"external_id": "their-customer", "name": "Theirs"}])
        accounts = LiveAccounts(
            stripe_url=server.url,
            stripe_key="sk_test_of_a_user",
            lago_url=server.url,
            lago_key="key",
            lago_connection=None,
        )
        with pytest.raises(LiveRefusedError, match="1 customers"):
            refuse_live_account(accounts)
        assert [call.method for call in sandbox.calls() if call.method != "GET"] == []


def test_an_account_that_cannot_be_read_is_refused_without_its_key() -> None:
    with pytest.raises(LiveRefusedError, match="cannot be read") as refused:
        refuse_live_account(
            LiveAccounts(
                stripe_url="http://127.0.0.1:1",
                stripe_key="sk_test_of_a_user",
                lago_url="http://127.0.0.1:1",
                lago_key="lago-key",
                lago_connection=None,
            )
        )
    assert "of_a_user" not in str(refused.value)
