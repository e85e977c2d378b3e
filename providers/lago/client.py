"""Requests to Lago over one pooled connection per process: the SDK's models, headers and reading of answers, kept.

Each call ends within its deadline, answers with a model of the SDK, or raises ``ports.errors`` as the table of failures
says; the true status of an answer that is no JSON is kept. Sent once more is, blips apart, only what lost a race for
a new ``external_id`` (lago.md 5.2). The SDK's own client is not used because it builds an HTTP client, TLS included,
for every call, sleeps on 429 and does not escape ids (lago.md 1.2 to 1.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from lago_python_client.exceptions import LagoApiError
from lago_python_client.services.json import to_json
from lago_python_client.services.request import make_headers, make_url
from lago_python_client.services.response import get_response_data, prepare_object_response
from pydantic.v1 import BaseModel, ValidationError

from core.ports.errors import ProviderError
from core.ports.provider import Pace
from providers.lago.errors import Refusal, Silence, failed
from providers.transport import deadline
from providers.transport.inline_retry import over_blips

LOST_A_RACE = "external_id:value_already_exist"

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """``about`` opens every error of this call: ids and codes only. ``path`` is unescaped."""

    about: str
    method: Literal["GET", "POST", "DELETE"]
    path: tuple[str, ...]
    root: str
    answer: type[Answer]
    body: BaseModel | None = None
    params: Mapping[str, str | list[str]] = field(default_factory=dict)


class LagoHttp:
    """``api_url`` is the API's bare address; a trailing ``/api/v1``, which the SDK would double, is understood."""

    def __init__(self, api_url: str, api_key: str, seconds: float) -> None:
        if not api_url.startswith(("http://", "https://")):
            message = "the Lago address must begin with http:// or https://"
            raise ValueError(message)
        # Checked here because httpx and h11 quote a header that they cannot send in their error.
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            message = "the Lago API key is empty or holds a blank, a line break or a character that is not ASCII"
            raise ValueError(message)
        self._origin = api_url.rstrip("/").removesuffix("/api/v1") + "/api/v1/"
        self._headers = make_headers(api_key=api_key)
        self._http = deadline.client(seconds)

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[Answer], claim: Pace | None) -> Answer:
        return _model(call, self._success(call, claim))

    def send_unless(self, word: str, call: Call[Answer], claim: Pace | None) -> Answer | None:
        """None only when Lago refuses with exactly this code (or ``field:code``); a proxy's 404 has none."""
        answer = self._answer(call, claim)
        if isinstance(answer, httpx.Response):
            return _model(call, answer)
        if word in answer.words:
            return None
        raise answer.failure(call.about).error()

    def page(self, call: Call[Answer], claim: Pace | None) -> tuple[list[Answer], bool]:
        """The first page of a list, and whether there are more."""
        whole = _read(call, self._success(call, claim), key="")
        rows, meta = (whole.get(call.root), whole.get("meta")) if isinstance(whole, Mapping) else (None, None)
        if not isinstance(rows, list) or not isinstance(meta, Mapping):
            raise unreadable(call.about, f"{call.root}, meta")
        return [_parsed(call, row) for row in rows], meta.get("next_page") is not None

    def _success(self, call: Call[Answer], claim: Pace | None) -> httpx.Response:
        answer = self._answer(call, claim)
        if isinstance(answer, httpx.Response):
            return answer
        raise answer.failure(call.about).error()

    def _answer(self, call: Call[Answer], claim: Pace | None) -> httpx.Response | Refusal | Silence:
        answer = self._sent(call, claim)
        if isinstance(answer, Refusal) and LOST_A_RACE in answer.words:
            answer = self._sent(call, claim)
        return answer

    def _sent(self, call: Call[Answer], claim: Pace | None) -> httpx.Response | Refusal | Silence:
        return over_blips(
            lambda: self._once(call, claim),
            lambda answer: not isinstance(answer, httpx.Response) and answer.failure(call.about).is_blip,
        )

    def _once(self, call: Call[Answer], claim: Pace | None) -> httpx.Response | Refusal | Silence:
        if claim is not None:
            claim.hold(_operation(call))
        url = make_url(origin=self._origin, path_parts=[_escaped(part) for part in call.path], query_pairs=call.params)
        content = None if call.body is None else to_json({call.root: call.body.dict(exclude_none=True)})
        try:
            response = self._http.request(call.method, url, headers=self._headers, content=content)
        except httpx.RequestError as error:
            return Silence(error)
        return response if response.is_success else Refusal(response.status_code, _body(response), response.headers)


def _operation(call: Call[Answer]) -> str:
    """Lago counts all requests of an organization together (lago.md 2): the name is for people."""
    names = [part if number != 1 else "{id}" for number, part in enumerate(call.path)]
    return f"{call.method} /api/v1/{'/'.join(names)}"


def unreadable(about: str, fields: str) -> ProviderError:
    return failed(about, "unreadable", f"missing or wrong: {fields}").error()


def moment(about: str, value: str | None) -> datetime:
    """A time or a plain date of Lago's, which is UTC midnight."""
    try:
        read = datetime.fromisoformat(value or "")
    except ValueError:
        raise unreadable(about, "a time") from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _escaped(part: str) -> str:
    # Lago reads what follows a dot as a format: GET /customers/acme.com is customer "acme" (lago.md 3.4).
    return quote(part, safe="").replace(".", "%2E")


def _body(response: httpx.Response) -> object:
    try:
        body: object = response.json()
    except ValueError:
        return None
    return body


def _model(call: Call[Answer], response: httpx.Response) -> Answer:
    return _parsed(call, _read(call, response, key=call.root))


def _read(call: Call[Answer], response: httpx.Response, key: str) -> object:
    try:
        data: object = get_response_data(response=response, key=key)
    except LagoApiError:
        data = None
    if data is None:  # a proxy's page, or nothing at all, for which the SDK's create returns None
        raise failed(call.about, "foreign", f"{response.status_code} not JSON", response.status_code).error()
    return data


def _parsed(call: Call[Answer], data: object) -> Answer:
    if not isinstance(data, Mapping) or not data:
        raise unreadable(call.about, call.root)
    try:
        return prepare_object_response(call.answer, data)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:5])
        raise unreadable(call.about, fields) from None
