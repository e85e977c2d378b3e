"""Webhooks at the door: what is genuine is stored once and answered at once, everything else is nowhere."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
import stripe
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from api.context import ApiContext
from api.routes.provider_webhooks import LAGO_WEBHOOK_PATH, LEGACY_WEBHOOK_PATHS, STRIPE_WEBHOOK_PATH
from api.routing import MAX_API_BODY_BYTES
from api.server import MAX_HEAD_BYTES, ApiServer
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.inbox import ProviderWebhook
from core.db.models.providers import ProviderStatus
from providers.lago.webhooks import HmacCheck, JwtCheck, LagoWebhookParser
from providers.stripe.webhooks import StripeWebhookParser

WHSEC, OLD_WHSEC = "whsec_nobody_may_read_this", "whsec_nobody_may_read_the_old_one"
LAGO_SECRET = "0f8fad5b-d9cb-469f-a165-70867728950e"
ORGANIZATION = "1a901a90-1a90-1a90-1a90-1a901a901a90"
TCP_SEGMENT = 1448
NAME, EMAIL = "Alice Nobody", "alice@private.test"


@pytest.fixture(scope="module")
def signer() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


def pem(signer: RSAPrivateKey) -> str:
    return signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def serving(
    database: Database, plans: Catalog, lago: LagoWebhookParser | None, *, stripe_too: bool = True
) -> ApiServer:
    taken = StripeWebhookParser(WHSEC) if stripe_too else None
    runtime = ApiContext(database=database, catalog=plans, clock=utc_now, stripe_webhooks=taken, lago_webhooks=lago)
    return ApiServer(runtime, "127.0.0.1", 0, version="test")


@pytest.fixture
def http(database: Database, plans: Catalog) -> Iterator[httpx.Client]:
    with (
        serving(database, plans, LagoWebhookParser(HmacCheck(LAGO_SECRET))) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        yield client


def stripe_event(name: str = "evt_1", kind: str = "customer.subscription.updated", **fields: object) -> bytes:
    about = {"id": "sub_1", "object": "subscription", "customer": "cus_1", "metadata": {"billing_sync_org_id": "org_1"}}
    personal = {"name": NAME, "customer_email": EMAIL}
    document = {"id": name, "object": "event", "type": kind, "livemode": False, "data": {"object": about | personal}}
    return json.dumps(document | fields).encode()


def stripe_headers(raw: bytes, secret: str = WHSEC, at: float | None = None) -> dict[str, str]:
    moment = int(time.time() if at is None else at)
    return {"Stripe-Signature": stripe.WebhookSignature.generate_signature_header(raw.decode(), secret, moment)}


def lago_event(kind: str = "subscription.updated", object_type: str = "subscription", **fields: object) -> bytes:
    about = {"lago_id": "l-1", "external_customer_id": "org_1", "customer": {"name": NAME, "email": EMAIL}} | fields
    return json.dumps(
        {"webhook_type": kind, "object_type": object_type, "organization_id": ORGANIZATION, object_type: about}
    ).encode()


def lago_headers(
    raw: bytes, key: str | None = "u-1", secret: str = LAGO_SECRET, algorithm: str = "hmac"
) -> dict[str, str]:
    digest = hmac.new(secret.encode(), raw, hashlib.sha256).digest()
    named = {} if key is None else {"X-Lago-Unique-Key": key}
    return {
        "X-Lago-Signature": base64.b64encode(digest).decode(),
        "X-Lago-Signature-Algorithm": algorithm,
    } | named


def stored(database: Database) -> list[ProviderWebhook]:
    with database.read() as session:
        return list(session.scalars(select(ProviderWebhook).order_by(ProviderWebhook.provider, ProviderWebhook.id)))


def kind_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, str(answer.json()["type"]).rpartition(":")[2]


def test_a_genuine_event_is_stored_with_ids_alone_and_answered(http: httpx.Client, database: Database) -> None:
    raw = stripe_event()
    answer = http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw))
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": "evt_1", "state": "stored", "reason": None, "repeated": False},
    )
    (webhook,) = stored(database)
    assert (webhook.type, webhook.object_id, webhook.customer_id, webhook.org_id) == (
        "customer.subscription.updated",
        "sub_1",
        "cus_1",
        "org_1",
    )
    with database.engine.connect() as connection:
        row = str(connection.exec_driver_sql("SELECT * FROM provider_webhooks").all())
    assert (NAME in row, EMAIL in row) == (False, False)


def test_lagos_alert_of_a_planned_end_asks_for_a_check(http: httpx.Client, database: Database) -> None:
    raw = lago_event("subscription.termination_alert")
    assert http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw)).status_code == 200
    (webhook,) = stored(database)
    assert (webhook.effect, webhook.org_id) == ("check", "org_1")


def test_a_genuine_webhook_of_lago_is_stored_under_its_unique_key(http: httpx.Client, database: Database) -> None:
    raw = lago_event()
    answer = http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw, "u-7"))
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (200, "u-7", "stored")
    (webhook,) = stored(database)
    assert (webhook.org_id, webhook.object_id, webhook.account_id, webhook.effect) == (
        "org_1",
        "l-1",
        ORGANIZATION,
        "check",
    )


@pytest.mark.parametrize("secret", [WHSEC, OLD_WHSEC])
def test_either_secret_of_two_opens_while_one_is_rotated(database: Database, plans: Catalog, secret: str) -> None:
    context = ApiContext(
        database=database, catalog=plans, clock=utc_now, stripe_webhooks=StripeWebhookParser(WHSEC, OLD_WHSEC)
    )
    raw = stripe_event()
    with (
        ApiServer(context, "127.0.0.1", 0, version="test") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        answer = client.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw, secret))
        refused = client.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw, "whsec_third"))
    assert (answer.status_code, refused.status_code) == (200, 401)


def test_a_thin_event_is_refused_by_name(http: httpx.Client, database: Database) -> None:
    thin = {
        "id": "evt_thin",
        "object": "v2.core.event",
        "type": "v1.customer.updated",
        "related_object": {"id": "cus_1", "type": "customer", "url": "/v1/customers/cus_1"},
    }
    raw = json.dumps(thin).encode()
    answer = http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw))
    assert kind_of(answer) == (400, "malformed-webhook")
    assert "snapshot" in answer.json()["detail"]
    assert stored(database) == []


NOT_GENUINE: list[dict[str, str]] = [
    {},
    {"Stripe-Signature": ""},
    {"Stripe-Signature": "nonsense"},
    {"Stripe-Signature": "t=x,v1=\N{LATIN SMALL LETTER E WITH ACUTE}"},
    stripe_headers(stripe_event(), "whsec_another"),
    stripe_headers(stripe_event("evt_2")),
    stripe_headers(stripe_event(), at=time.time() - 301),
    {"Stripe-Signature": stripe_headers(stripe_event())["Stripe-Signature"].replace("v1=", "v0=")},
]


def test_what_stripe_did_not_sign_lately_is_refused_and_nowhere(http: httpx.Client, database: Database) -> None:
    for headers in NOT_GENUINE:
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        assert kind_of(http.post(STRIPE_WEBHOOK_PATH, content=stripe_event(), headers=encoded)) == (
            401,
            "bad-signature",
        ), headers
    assert stored(database) == []


def refused_since(database: Database, provider: str) -> datetime | None:
    with database.read() as session:
        return session.get_one(ProviderStatus, provider).webhooks_refused_since


def test_a_wrong_signature_is_told_to_operators_until_a_right_one_comes(http: httpx.Client, database: Database) -> None:
    raw = stripe_event()
    http.post(STRIPE_WEBHOOK_PATH, content=raw)
    assert refused_since(database, "stripe") is None, "without a signature it is no provider"
    wrong = stripe_headers(raw, "whsec_another")
    http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=wrong)
    since = refused_since(database, "stripe")
    assert since is not None
    http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=wrong)
    assert (refused_since(database, "stripe"), refused_since(database, "lago")) == (since, None)
    for _ in range(2):
        http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw))
        assert refused_since(database, "stripe") is None


def test_what_lago_did_not_sign_is_refused_whatever_algorithm_it_names(http: httpx.Client, database: Database) -> None:
    raw = lago_event()
    for headers in (
        {"X-Lago-Unique-Key": "u-1"},
        lago_headers(raw, secret="another"),
        lago_headers(lago_event("subscription.terminated")),
        {**lago_headers(raw, secret="another"), "X-Lago-Signature-Algorithm": "none"},
        {**lago_headers(raw), "X-Lago-Signature": hmac.new(LAGO_SECRET.encode(), raw, hashlib.sha256).hexdigest()},
    ):
        assert kind_of(http.post(LAGO_WEBHOOK_PATH, content=raw, headers=headers)) == (401, "bad-signature")
    assert stored(database) == []
    # The settings fix the algorithm: another name on a good signature changes nothing.
    assert http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw, algorithm="jwt")).status_code == 200


def test_signed_by_jwt_only_lagos_own_key_over_exactly_this_body_opens(
    database: Database, plans: Catalog, signer: RSAPrivateKey
) -> None:
    raw, other_key = lago_event(), generate_private_key(public_exponent=65537, key_size=2048)

    def token(key: Any, data: str = raw.decode(), algorithm: str = "RS256") -> dict[str, str]:  # noqa: ANN401 - PyJWT's own
        made = jwt.encode({"data": data, "iss": "http://lago"}, key, algorithm=algorithm)
        return {"X-Lago-Signature": made, "X-Lago-Unique-Key": "u-1"}

    unsigned = jwt.encode({"data": raw.decode()}, "", algorithm="none")
    # The classic: the public key taken for an HMAC secret, as a message that names its own algorithm would have it.
    confused = base64.urlsafe_b64encode(json.dumps({"alg": "HS256"}).encode()).rstrip(b"=").decode()
    claims = base64.urlsafe_b64encode(json.dumps({"data": raw.decode()}).encode()).rstrip(b"=").decode()
    seal = hmac.new(pem(signer).encode(), f"{confused}.{claims}".encode(), hashlib.sha256).digest()
    forged = f"{confused}.{claims}.{base64.urlsafe_b64encode(seal).rstrip(b'=').decode()}"
    with (
        serving(
            database, plans, LagoWebhookParser(JwtCheck(base64.b64encode(pem(signer).encode()).decode()))
        ) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        for headers in (
            token(other_key),
            token(signer, lago_event("subscription.terminated").decode()),
            {"X-Lago-Signature": unsigned, "X-Lago-Unique-Key": "u-1"},
            {"X-Lago-Signature": forged, "X-Lago-Unique-Key": "u-1"},
            lago_headers(raw),
        ):
            assert kind_of(client.post(LAGO_WEBHOOK_PATH, content=raw, headers=headers)) == (401, "bad-signature")
        assert stored(database) == []
        assert client.post(LAGO_WEBHOOK_PATH, content=raw, headers=token(signer)).json()["state"] == "stored"


@pytest.mark.parametrize(("fees", "status"), [(60, b"200"), (4_000, b"400")])
def test_a_jwt_signature_with_a_whole_invoice_is_read_in_pieces_of_any_size(
    database: Database, plans: Catalog, signer: RSAPrivateKey, fees: int, status: bytes
) -> None:
    """Up to a limit: a head that never ends must not fill the memory."""
    fee = {"lago_id": str(uuid4()), "item": {"type": "charge", "code": "api_calls", "name": "API calls"}}
    raw = lago_event("invoice.payment_failure", "payment_provider_invoice_payment_error", fees=[fee] * fees)
    token = jwt.encode({"data": raw.decode(), "iss": "http://lago"}, signer, algorithm="RS256")
    head = (
        f"POST {LAGO_WEBHOOK_PATH} HTTP/1.1\r\nHost: api\r\nContent-Length: {len(raw)}\r\n"
        f"X-Lago-Unique-Key: u-1\r\nX-Lago-Signature: {token}\r\n\r\n"
    ).encode()
    assert (len(head) > MAX_HEAD_BYTES) == (status == b"400")
    parser = LagoWebhookParser(JwtCheck(pem(signer)))
    with (
        serving(database, plans, parser) as server,
        socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=60) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = head + raw
        with contextlib.suppress(ConnectionError):  # it answers and closes before a head that is too large has ended
            for start in range(0, len(sent), TCP_SEGMENT):
                connection.sendall(sent[start : start + TCP_SEGMENT])
        answer = connection.recv(4096)
    assert answer.split(b" ")[1] == status
    assert len(stored(database)) == (status == b"200")


def test_what_is_signed_and_unreadable_is_refused(http: httpx.Client, database: Database) -> None:
    unnamed = (
        b'{"id": 1, "type": "invoice.paid"}',
        stripe_event("x" * 256),
        stripe_event("evt_\x00"),
        stripe_event("\ud800"),
    )
    for raw in (b"", b"{", b"[]", b"null", b"[" * 100_000, *unnamed):
        assert kind_of(http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw))) == (
            400,
            "malformed-webhook",
        ), raw[:50]
        assert kind_of(http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw))) == (
            400,
            "malformed-webhook",
        ), raw[:50]
    assert stored(database) == []


def test_a_webhook_of_lago_without_its_name_is_refused(http: httpx.Client, database: Database) -> None:
    raw = lago_event()
    assert kind_of(http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw, None))) == (
        400,
        "malformed-webhook",
    )
    assert stored(database) == []


def test_the_same_one_twice_at_once_is_one_row_and_both_are_answered_200(
    http: httpx.Client, database: Database
) -> None:
    raw = stripe_event()
    headers = stripe_headers(raw)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=headers), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert sorted(answer.json()["repeated"] for answer in answers) == [False] + [True] * 7
    assert len(stored(database)) == 1


def test_what_is_of_no_interest_or_our_own_doing_is_kept_as_ignored(http: httpx.Client, database: Database) -> None:
    ours = {"request": {"id": "req_1", "idempotency_key": "billing-sync:create_subscription:org_1:1"}}
    for raw in (
        stripe_event(
            "evt_new", "a.kind.of.next.year", data={"object": {"id": "x", "customer": {"id": 3}, "metadata": None}}
        ),
        stripe_event("evt_thin", "v1.billing.meter.error_report_triggered", data=None),
        stripe_event("evt_ours", "customer.subscription.updated", **ours),
    ):
        assert http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw)).json()["state"] == "ignored"
    # A payment that fails in a call of ours is news all the same.
    failed = stripe_event("evt_failed", "invoice.payment_failed", **ours)
    assert http.post(STRIPE_WEBHOOK_PATH, content=failed, headers=stripe_headers(failed)).json()["state"] == "stored"
    raw = lago_event("customer.created", "customer", external_id="org_1")
    assert http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw)).json()["state"] == "ignored"
    assert {webhook.id: webhook.reason for webhook in stored(database)}["evt_ours"] == "caused by our own request"


def test_another_account_or_mode_is_stored_as_refused(http: httpx.Client, database: Database) -> None:
    with database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_ours"
        session.get_one(ProviderStatus, "stripe").livemode = True
        session.get_one(ProviderStatus, "lago").account_id = "another"
    for raw in (stripe_event("evt_test"), stripe_event("evt_connected", livemode=True, account="acct_theirs")):
        assert http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw)).json()["state"] == "rejected"
    raw = lago_event()
    assert http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw)).json()["state"] == "rejected"
    assert {webhook.state for webhook in stored(database)} == {"rejected"}


def test_a_failure_is_kept_with_the_payment_providers_code_and_without_its_words(
    http: httpx.Client, database: Database
) -> None:
    errors: dict[str, Any] = {
        "coded": {"message": f"{NAME} has no money", "error_code": "card_declined"},
        "worded": f"{NAME} has no money",
        "none": None,
    }
    for name, error in errors.items():
        raw = lago_event("invoice.payment_failure", "payment_provider_invoice_payment_error", provider_error=error)
        assert http.post(LAGO_WEBHOOK_PATH, content=raw, headers=lago_headers(raw, name)).status_code == 200
    assert {webhook.id: webhook.code for webhook in stored(database)} == {
        "coded": "card_declined",
        "worded": "invoice.payment_failure",
        "none": "invoice.payment_failure",
    }


def test_without_a_secret_there_is_nothing_here(database: Database, plans: Catalog) -> None:
    with (
        serving(database, plans, None, stripe_too=False) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        raw = stripe_event()
        for path, name in ((STRIPE_WEBHOOK_PATH, "STRIPE_WEBHOOK_SECRET"), (LAGO_WEBHOOK_PATH, "LAGO_WEBHOOK_SECRET")):
            answer = client.post(path, content=raw, headers={**stripe_headers(raw), **lago_headers(raw)})
            assert kind_of(answer) == (404, "not-found")
            assert name in answer.json()["detail"]
    assert stored(database) == []


def test_a_body_that_is_too_large_is_not_read_to_its_end(http: httpx.Client, database: Database) -> None:
    raw = stripe_event(padding="x" * MAX_API_BODY_BYTES)
    assert kind_of(http.post(STRIPE_WEBHOOK_PATH, content=raw, headers=stripe_headers(raw))) == (413, "too-large")
    assert stored(database) == []


def test_the_older_paths_take_the_same(http: httpx.Client, database: Database) -> None:
    for number, path in enumerate(LEGACY_WEBHOOK_PATHS[STRIPE_WEBHOOK_PATH]):
        raw = stripe_event(f"evt_{number}")
        assert http.post(path, content=raw, headers=stripe_headers(raw)).json()["state"] == "stored"
        assert http.post(path, content=raw, headers=stripe_headers(raw, "whsec_another")).status_code == 401
    for path in LEGACY_WEBHOOK_PATHS[LAGO_WEBHOOK_PATH]:
        raw = lago_event()
        assert http.post(path, content=raw, headers=lago_headers(raw)).json()["state"] == "stored"
    assert len(stored(database)) == len(LEGACY_WEBHOOK_PATHS[STRIPE_WEBHOOK_PATH]) + len(
        LEGACY_WEBHOOK_PATHS[LAGO_WEBHOOK_PATH]
    )


def test_every_answer_is_described(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in (
        STRIPE_WEBHOOK_PATH,
        LAGO_WEBHOOK_PATH,
        *LEGACY_WEBHOOK_PATHS[STRIPE_WEBHOOK_PATH],
        *LEGACY_WEBHOOK_PATHS[LAGO_WEBHOOK_PATH],
    ):
        operation = paths[path]["post"]
        assert {"200", "400", "401", "404", "408", "413", "422", "503"} <= set(operation["responses"])
        assert "application/json" in operation["requestBody"]["content"]
        assert "security" not in operation


@pytest.mark.parametrize("key", ["", "nonsense", "LS0tLS1CRUdJTg==", base64.b64encode(b"-----BEGIN NOTHING").decode()])
def test_a_public_key_that_is_none_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        JwtCheck(key)
