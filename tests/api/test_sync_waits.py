"""Requests that wait: so many of a caller, none for a client that has gone, and one poll for all of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import event

from api.request_limits import MAX_WAITING_REQUESTS_OF_CALLER
from tests.support.api_client import Api
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def wait_for(api: Api, org_id: str, authorization: str, seconds: int = 30) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])), timeout=60)
    head = f"GET /api/organizations/{org_id}/sync?wait={seconds}s HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}"
    connection.sendall(f"{head}\r\n\r\n".encode())
    return connection


@pytest.mark.slow
def test_a_caller_has_a_bounded_number_of_waiting_requests(api: Api) -> None:
    org_id = api.organization()
    mine, others = api.as_service(), api.as_service(account="others")
    with ExitStack() as stack:
        for _ in range(MAX_WAITING_REQUESTS_OF_CALLER + 1):
            stack.enter_context(wait_for(api, org_id, mine["Authorization"]))
        until(lambda: [line.get("status") for line in api.log] == [429], "one of them is refused")
        path = f"/api/organizations/{org_id}/sync"
        refused = api.get(path, mine, wait="1s")
        assert refused.headers["retry-after"] == "1"
        assert "too many waiting requests" in refused.json()["detail"]
        assert api.get(path, mine).status_code == 200
        assert api.get(path, others, wait="1s").status_code == 200
    until(lambda: api.get(path, mine, wait="1s").status_code == 200, "requests end with their clients", seconds=25)


@pytest.mark.slow
def test_all_waiting_requests_share_one_poll(api: Api) -> None:
    org_id, headers = api.organization(), [api.as_service(account=str(number)) for number in range(4)]
    with ExitStack() as stack:
        for number in range(60):
            stack.enter_context(wait_for(api, org_id, headers[number % 4]["Authorization"]))
        until(lambda: len([line for line in api.log if line.get("route")]) == 0, "none is answered")
        time.sleep(2)  # each has been authorized and reads no more
        with counted_statements(api) as statements:
            time.sleep(3)
        assert 1 <= len(statements) <= 40  # one poll in 0.1 s; sixty clients would read hundreds of times


@contextmanager
def counted_statements(api: Api) -> Iterator[list[str]]:
    statements: list[str] = []

    def count(*arguments: object) -> None:
        if (statement := str(arguments[2])).startswith("SELECT"):
            statements.append(statement)

    engine = api.database.engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", count)
