"""The forwarder changes nothing, loses the answers that it was asked to lose, and finds the differences of answers."""

from __future__ import annotations

import httpx
import pytest

from sandbox.server import Sandbox
from tests.foreign.differences import AccountDifference, differences
from tests.foreign.forwarder import ForwardedRequest, Forwarder, operation_of

KEY = {"Authorization": "Bearer sk_test_story"}


def test_an_operation_has_no_id() -> None:
    assert operation_of("POST", "/v1/invoices/in_1/finalize") == "POST /v1/invoices/{id}/finalize"
    assert operation_of("GET", "/v1/customers/search") == "GET /v1/customers/search"
    assert operation_of("DELETE", "/api/v1/subscriptions/org_1") == "DELETE /api/v1/subscriptions/{id}"
    assert operation_of("GET", "/v1/account") == "GET /v1/account"


def test_a_lost_answer_is_a_closed_connection_after_the_provider_did_it() -> None:
    with Sandbox().start() as server, Forwarder(server.url) as forwarder:
        loss = forwarder.lose_answer("POST /v1/customers")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{forwarder.url}/v1/customers", data={"name": "Acme"}, headers=KEY)
        found = httpx.get(f"{forwarder.url}/v1/customers", headers=KEY).json()["data"]
        assert [each["name"] for each in found] == ["Acme"]
        assert loss.times == 0
    assert [(each.operation, each.status, each.lost) for each in forwarder.requests] == [
        ("POST /v1/customers", 200, True),
        ("GET /v1/customers", 200, False),
    ]


def test_a_parameter_that_is_left_out_does_not_arrive() -> None:
    with Sandbox().start() as server, Forwarder(server.url, left_out=("email",)) as forwarder:
        form = {"name": "Acme", "email": "ap@acme.test"}
        answer = httpx.post(f"{forwarder.url}/v1/customers", data=form, headers=KEY).json()
        assert (answer["name"], answer["email"]) == ("Acme", None)


def test_an_answer_in_the_providers_place_is_not_forwarded() -> None:
    with Forwarder("http://127.0.0.1:1", {"GET /v1/account": {"id": "acct_1"}}) as forwarder:
        assert httpx.get(f"{forwarder.url}/v1/account").json() == {"id": "acct_1"}
    assert forwarder.requests == []


def test_differences_name_fields_types_and_statuses_and_no_value() -> None:
    def answered(status: int, answer: object) -> ForwardedRequest:
        path = "/v1/customers"
        return ForwardedRequest(method="GET", path=path, query="", sent={}, status=status, answer=answer)

    ours = answered(200, {"object": "customer", "name": "Secret", "tax": None, "metadata": {"org_id": "1"}})
    theirs = answered(201, {"object": "customer", "name": None, "phone": "Secret", "metadata": {"plan": "1"}})
    found = differences([ours], [theirs])
    assert found == [
        AccountDifference(place="GET /v1/customers", sandbox="status 200", other="status 201"),
        AccountDifference(place="customer.name", sandbox="string", other="null"),
        AccountDifference(place="customer.phone", sandbox="absent", other="string"),
        AccountDifference(place="customer.tax", sandbox="null", other="absent"),
    ]
    assert differences([ours], [ours]) == []
