"""HTTP client for Lago: one connection pool per process, with the SDK's models, headers and response parsing.

Each call ends within its deadline. It returns a model of the SDK, or raises an error of ``core.ports.errors`` by the
failure table. The true status of a response that is not JSON is kept. Apart from transient errors, only a request that
lost a race for a new ``external_id`` is sent again (lago.md 5.2). The SDK's own client is not used, because it builds
an HTTP client, TLS included, for every call, sleeps on 429 and does not escape ids (lago.md 1.2 to 1.4).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from lago_python_client.exceptions import LagoApiError
from lago_python_client.services.json import to_json
from lago_python_client.services.request import make_headers, make_url
from lago_python_client.services.response import get_response_data, prepare_object_response
from pydantic.v1 import BaseModel, ValidationError

from core.ports.errors import ProviderError
from core.ports.provider import RequestPermits
from providers.lago.errors import ErrorResponse, NoAnswer, failure_with_code, valid_code
from providers.transport import deadline, request_metrics
from providers.transport.inline_retry import retry_transient
from providers.transport.permits import refuse_write

CREATE_RACE_CODE = "external_id:value_already_exist"

ResponseT = TypeVar("ResponseT", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LagoRequest(Generic[ResponseT]):
    """``context`` begins every error message of this call and contains ids and codes only. ``path`` is unescaped."""

    context: str
    method: Literal["GET", "POST", "DELETE"]
    path: tuple[str, ...]
    root: str
    response_type: type[ResponseT]
    body: BaseModel | None = None
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    document: Mapping[str, object] | None = None
    """Instead of ``body``, and sent as it is: the SDK's models send no null, so they clear no field (lago.md 1.4)."""


class LagoClient:
    """``api_url`` is the origin of the API. A trailing ``/api/v1``, which the SDK would double, is removed."""

    def __init__(self, api_url: str, api_key: str, seconds: float) -> None:
        if not api_url.startswith(("http://", "https://")):
            message = "LAGO_API_URL must begin with http:// or https://"
            raise ValueError(message)
        # Checked here, because the errors of httpx and h11 quote a header that they cannot send.
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            message = "LAGO_API_KEY is empty, or contains a space, a line break or a character that is not ASCII"
            raise ValueError(message)
        self._origin = api_url.rstrip("/").removesuffix("/api/v1") + "/api/v1/"
        self._headers = make_headers(api_key=api_key)
        self._http = deadline.client(seconds)

    def close(self) -> None:
        self._http.close()

    def send(self, request: LagoRequest[ResponseT], permits: RequestPermits) -> ResponseT:
        return _parse_response(request, self._send_or_raise(request, permits))

    def send_or_none(self, code: str, request: LagoRequest[ResponseT], permits: RequestPermits) -> ResponseT | None:
        """None only if Lago rejects the request with exactly this code (or ``field:code``). A proxy's 404 has none."""
        outcome = self._send_with_race_retry(request, permits)
        if isinstance(outcome, httpx.Response):
            return _parse_response(request, outcome)
        if code in outcome.codes:
            return None
        raise outcome.to_failure(request.context).to_error()

    def list_page(self, request: LagoRequest[ResponseT], permits: RequestPermits) -> tuple[list[ResponseT], bool]:
        """The first page of a list, and whether there are more pages."""
        document = _response_data(request, self._send_or_raise(request, permits), key="")
        rows, meta = (
            (document.get(request.root), document.get("meta")) if isinstance(document, Mapping) else (None, None)
        )
        if not isinstance(rows, list) or not isinstance(meta, Mapping):
            raise unreadable_error(request.context, f"{request.root}, meta")
        return [_parse_model(request, row) for row in rows], meta.get("next_page") is not None

    def _send_or_raise(self, request: LagoRequest[ResponseT], permits: RequestPermits) -> httpx.Response:
        outcome = self._send_with_race_retry(request, permits)
        if isinstance(outcome, httpx.Response):
            return outcome
        raise outcome.to_failure(request.context).to_error()

    def _send_with_race_retry(
        self, request: LagoRequest[ResponseT], permits: RequestPermits
    ) -> httpx.Response | ErrorResponse | NoAnswer:
        outcome = self._send_with_inline_retry(request, permits)
        if isinstance(outcome, ErrorResponse) and CREATE_RACE_CODE in outcome.codes:
            outcome = self._send_with_inline_retry(request, permits)
        return outcome

    def _send_with_inline_retry(
        self, request: LagoRequest[ResponseT], permits: RequestPermits
    ) -> httpx.Response | ErrorResponse | NoAnswer:
        return retry_transient(
            lambda: self._send_once(request, permits),
            lambda outcome: (
                not isinstance(outcome, httpx.Response) and outcome.to_failure(request.context).may_retry_inline
            ),
        )

    def _send_once(
        self, request: LagoRequest[ResponseT], permits: RequestPermits
    ) -> httpx.Response | ErrorResponse | NoAnswer:
        operation = operation_of(request)
        refuse_write("lago", permits, operation)
        permits.before_request(operation)
        started_at = time.monotonic()
        outcome = self._request(request, permits)
        failure = None if isinstance(outcome, httpx.Response) else outcome.to_failure(request.context)
        request_metrics.record("lago", operation, started_at, failure)
        return outcome

    def _request(
        self, request: LagoRequest[ResponseT], permits: RequestPermits
    ) -> httpx.Response | ErrorResponse | NoAnswer:
        url = make_url(
            origin=self._origin, path_parts=[_escape(part) for part in request.path], query_pairs=request.params
        )
        document = request.document if request.body is None else request.body.dict(exclude_none=True)
        content = None if document is None else to_json({request.root: document})
        try:
            response = self._http.request(request.method, url, headers=self._headers, content=content)
        except httpx.RequestError as error:
            return NoAnswer(error)
        permits.after_response(valid_code(response.headers.get("x-request-id")))
        return (
            response
            if response.is_success
            else ErrorResponse(response.status_code, _json_body(response), response.headers)
        )


def operation_of(request: LagoRequest[ResponseT]) -> str:
    """A name for operators and metrics only: Lago counts all requests of an organization together (lago.md 2)."""
    names = [part if number != 1 else "{id}" for number, part in enumerate(request.path)]
    return f"{request.method} /api/v1/{'/'.join(names)}"


def unreadable_error(context: str, fields: str) -> ProviderError:
    return failure_with_code(context, "unreadable", f"missing or wrong: {fields}").to_error()


def parse_time(context: str, value: str | None) -> datetime:
    """Parse a time of Lago's. A plain date means UTC midnight."""
    try:
        parsed = datetime.fromisoformat(value or "")
    except ValueError:
        raise unreadable_error(context, "a time") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_period_end(context: str, value: str) -> datetime:
    """When the next period begins. Lago gives the last second of the period."""
    return parse_time(context, value) + timedelta(seconds=1)


def _escape(part: str) -> str:
    # Lago reads what follows a dot as a format: GET /customers/acme.com is customer "acme" (lago.md 3.4).
    return quote(part, safe="").replace(".", "%2E")


def _json_body(response: httpx.Response) -> object:
    try:
        body: object = response.json()
    except ValueError:
        return None
    return body


def _parse_response(request: LagoRequest[ResponseT], response: httpx.Response) -> ResponseT:
    return _parse_model(request, _response_data(request, response, key=request.root))


def _response_data(request: LagoRequest[ResponseT], response: httpx.Response, key: str) -> object:
    try:
        data: object = get_response_data(response=response, key=key)
    except LagoApiError:
        data = None
    if data is None:  # a proxy's page, or an empty response, for which the SDK's create returns None
        raise failure_with_code(
            request.context, "foreign", f"{response.status_code} not JSON", response.status_code
        ).to_error()
    return data


def _parse_model(request: LagoRequest[ResponseT], data: object) -> ResponseT:
    if not isinstance(data, Mapping) or not data:
        raise unreadable_error(request.context, request.root)
    try:
        return prepare_object_response(request.response_type, data)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:5])
        raise unreadable_error(request.context, fields) from None
