"""Which addresses may be told, what is public, and whose signature a secret makes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.webhooks import WebhookEndpoint
from core.webhooks import endpoints
from core.webhooks.endpoints import MAX_ENDPOINTS, MAX_ENDPOINTS_OF_ACCOUNT, NewEndpoint
from core.webhooks.signing import ROTATION_OVERLAP, Signer
from core.webhooks.url_policy import checked_url, is_public
from tests.support.clocks import SetClock

SETTING = "a setting of the deployment, long and random"
BODY = b'{"id":"1"}'

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"]
NOT_PUBLIC = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",  # noqa: S104 - an address like the others
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.8",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001::1",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_address_of_ours_or_of_a_cloud_or_that_wraps_one_is_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com", "https://example.com:8443/a/b?c=d", "https://[2606:4700::1111]/x"]
)
def test_https_to_a_host_is_taken_as_it_is(url: str) -> None:
    assert checked_url(url, allow_private=False) == url


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000/x", "http://localhost/x", "http://[::1]:1/", "https://10.0.0.1/"]
)
def test_an_address_of_ours_is_taken_only_where_that_is_allowed(url: str) -> None:
    assert checked_url(url, allow_private=True) == url
    with pytest.raises(InvalidChangeError, match="private"):
        checked_url(url, allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "http://hooks.example.com/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/",
        "https://",
        "https://user:word@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\n",
        "https://example.com\\@10.0.0.1/",
        "https://exämple.com/",
        "https://[::1/",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_what_is_no_plain_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidChangeError) as refused:
        checked_url(url, allow_private=True)
    assert refused.value.field == "url"
    assert "example" not in str(refused.value)


def test_endpoints_are_listed_with_what_they_ask_for(database: Database, clock: SetClock) -> None:
    new = NewEndpoint(
        url="https://a.example", events=["membership.added", "organization.created"], description=" the desk "
    )
    with database.write() as session:
        first = endpoints.add(session, new, clock(), allow_private=False)
        clock.advance(seconds=1)
        second = endpoints.add(session, NewEndpoint(url="https://b.example"), clock(), allow_private=False)
        assert endpoints.rotate_secret(session, second.id, clock()) == 2
        assert endpoints.rotate_secret(session, "we_none", clock()) is None
    with database.read() as session:
        found = endpoints.list_all(session)
    assert [(each.id, each.secret_generation) for each in found] == [(first.id, 1), (second.id, 2)]
    assert (found[0].events, found[0].description) == (["organization.created", "membership.added"], "the desk")
    assert (found[1].events, found[1].pending, found[1].failed) == ([], 0, 0)


def test_words_that_cannot_be_are_refused_and_there_is_a_bound(database: Database, clock: SetClock) -> None:
    wrong = [
        NewEndpoint(url="https://a.example", events=["organization.sold"]),
        NewEndpoint(url="https://a.example", description="x" * 201),
        NewEndpoint(url="https://a.example", description="two\nlines"),
    ]
    with database.write() as session:
        for new in wrong:
            with pytest.raises(InvalidChangeError):
                endpoints.add(session, new, clock(), allow_private=False)
        for _ in range(MAX_ENDPOINTS):
            endpoints.add(session, NewEndpoint(url="https://a.example"), clock(), allow_private=False)
        with pytest.raises(InvalidChangeError, match=f"{MAX_ENDPOINTS} webhook endpoints"):
            endpoints.add(session, NewEndpoint(url="https://a.example"), clock(), allow_private=False)


def endpoint(generation: int = 1, rotated_at: datetime | None = None) -> WebhookEndpoint:
    return WebhookEndpoint(id="we_1", secret_generation=generation, rotated_at=rotated_at)


def test_many_who_add_at_once_keep_to_the_bound(database: Database, clock: SetClock) -> None:
    with database.write() as session:
        for _ in range(MAX_ENDPOINTS - 2):
            endpoints.add(session, NewEndpoint(url="https://a.example"), clock(), allow_private=False)

    def add_one(_: int) -> bool:
        try:
            with database.write() as session:
                endpoints.add(session, NewEndpoint(url="https://a.example"), clock(), allow_private=False)
        except InvalidChangeError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add_one, range(8))) == 2
    with database.read() as session:
        assert len(endpoints.list_all(session)) == MAX_ENDPOINTS


def test_one_account_cannot_take_all_endpoints(database: Database, clock: SetClock) -> None:
    mine = NewEndpoint(url="https://a.example", account_id="a" * 16)
    with database.write() as session:
        for _ in range(MAX_ENDPOINTS_OF_ACCOUNT):
            endpoints.add(session, mine, clock(), allow_private=False)
        other = endpoints.add(session, NewEndpoint(url="https://b.example"), clock(), allow_private=False)
        for refused in (
            lambda: endpoints.add(session, mine, clock(), allow_private=False),
            lambda: endpoints.assign(session, other.id, "a" * 16),
        ):
            with pytest.raises(InvalidChangeError, match=f"already has {MAX_ENDPOINTS_OF_ACCOUNT}"):
                refused()


def test_an_endpoint_belongs_to_one_account_until_an_operator_gives_it_to_another(
    database: Database, clock: SetClock
) -> None:
    with database.write() as session:
        mine = endpoints.add(
            session, NewEndpoint(url="https://a.example", account_id="a" * 16), clock(), allow_private=False
        )
        operators = endpoints.add(session, NewEndpoint(url="https://b.example"), clock(), allow_private=False)
        assert [each.id for each in endpoints.list_all(session, "a" * 16)] == [mine.id]
        assert not endpoints.lock_own(session, operators.id, "a" * 16)
        assert endpoints.assign(session, operators.id, "a" * 16)
        assert not endpoints.assign(session, "we_none", "a" * 16)
        assert endpoints.lock_own(session, operators.id, "a" * 16)
        assert not endpoints.lock_own(session, operators.id, "b" * 16)
        assert not endpoints.lock_own(session, "we_none", "a" * 16)


def test_the_public_library_verifies_what_is_signed() -> None:
    signer = Signer(SETTING)
    headers = signer.headers(endpoint(), "event-1", BODY, datetime.now(UTC))
    secret = signer.secret("we_1", 1)
    assert secret.startswith("whsec_")
    Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY, headers | {"webhook-id": "event-2"})


def test_no_two_endpoints_settings_or_generations_share_a_secret() -> None:
    signer = Signer(SETTING)
    made = [signer.secret("we_1", 1), signer.secret("we_2", 1), signer.secret("we_1", 2), Signer("x").secret("we_1", 1)]
    assert len(set(made)) == 4
    assert signer.secret("we_1", 1) == made[0]
    assert SETTING not in repr(signer)


def test_after_a_rotation_both_secrets_verify_for_a_day_and_then_the_new_one_alone() -> None:
    signer, now = Signer(SETTING), datetime.now(UTC)
    during = signer.headers(endpoint(2, now - timedelta(minutes=1)), "event-1", BODY, now)
    for generation in (1, 2):
        Webhook(signer.secret("we_1", generation)).verify(BODY, during)
    after = signer.headers(endpoint(2, now - ROTATION_OVERLAP), "event-1", BODY, now)
    Webhook(signer.secret("we_1", 2)).verify(BODY, after)
    with pytest.raises(WebhookVerificationError):
        Webhook(signer.secret("we_1", 1)).verify(BODY, after)
