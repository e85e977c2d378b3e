"""Requests to Lago over one pooled connection per process: the SDK's models, headers and reading of answers, kept.

Each call ends within its deadline, answers with a model of the SDK, or raises ``core.errors``; the true status of
an answer that is no JSON is kept. Only a connection that could not be made is tried again here. Sent once more is
also what lost a race for a new ``external_id`` (lago.md 5.2). The SDK's own client is not used because it builds an
HTTP client, TLS included, for every call, sleeps on 429 and does not escape ids (lago.md 1.2 to 1.4).
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
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from core.errors import MisconfiguredError, UnavailableError
from core.gateways import Claim
from providers import deadline
from providers.lago_refusals import Refusal

LOST_A_RACE = "external_id:value_already_exist"

Answer = TypeVar("Answer", bound=BaseModel)

# Refused or unreachable before anything was sent: at most 3 tries in 3 s. All else is the task's retry.
_bridging_blips = Retrying(
    retry=retry_if_exception_type(httpx.ConnectError),
    stop=stop_after_attempt(3) | stop_after_delay(2.0),
    wait=wait_random_exponential(multiplier=0.1, max=0.5),
    reraise=True,
)


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

    def send(self, call: Call[Answer], claim: Claim | None) -> Answer:
        answer = self._answer(call, claim)
        if isinstance(answer, Refusal):
            raise answer.named(call.about)
        return _model(call, answer)

    def send_unless(self, word: str, call: Call[Answer], claim: Claim | None) -> Answer | None:
        """None only when Lago refuses with exactly this code (or ``field:code``); a proxy's 404 has none."""
        answer = self._answer(call, claim)
        if isinstance(answer, Refusal):
            if word in answer.words:
                return None
            raise answer.named(call.about)
        return _model(call, answer)

    def page(self, call: Call[Answer], claim: Claim | None) -> tuple[list[Answer], bool]:
        """The first page of a list, and whether there are more."""
        answer = self._answer(call, claim)
        if isinstance(answer, Refusal):
            raise answer.named(call.about)
        whole = _read(call, answer, key="")
        rows, meta = (whole.get(call.root), whole.get("meta")) if isinstance(whole, Mapping) else (None, None)
        if not isinstance(rows, list) or not isinstance(meta, Mapping):
            raise unreadable(call.about, f"{call.root}, meta")
        return [_parsed(call, row) for row in rows], meta.get("next_page") is not None

    def _answer(self, call: Call[Answer], claim: Claim | None) -> httpx.Response | Refusal:
        answer = self._sent(call, claim)
        if isinstance(answer, Refusal) and LOST_A_RACE in answer.words:
            answer = self._sent(call, claim)
        return answer

    def _sent(self, call: Call[Answer], claim: Claim | None) -> httpx.Response | Refusal:
        try:
            response = _bridging_blips(self._once, call, claim)
        except httpx.ConnectError as error:
            message = f"{call.about}: no connection to Lago ({error})"
            raise UnavailableError("lago", message) from None
        except httpx.TimeoutException as error:
            message = f"{call.about}: no whole answer from Lago in time ({type(error).__name__}); it may have been done"
            raise UnavailableError("lago", message) from None
        except httpx.RequestError as error:
            message = f"{call.about}: the answer of Lago was lost ({type(error).__name__}); it may have been done"
            raise UnavailableError("lago", message) from None
        if response.is_success:
            return response
        return Refusal(response.status_code, _error_body(response), response.headers)

    def _once(self, call: Call[Answer], claim: Claim | None) -> httpx.Response:
        if claim is not None:
            claim.hold()
        url = make_url(origin=self._origin, path_parts=[_escaped(part) for part in call.path], query_pairs=call.params)
        content = None if call.body is None else to_json({call.root: call.body.dict(exclude_none=True)})
        return self._http.request(call.method, url, headers=self._headers, content=content)


def unreadable(about: str, fields: str) -> MisconfiguredError:
    message = f"{about}: Lago's answer cannot be read (missing or wrong: {fields}); is this version of Lago supported?"
    return MisconfiguredError("lago", message)


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


def _error_body(response: httpx.Response) -> object:
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
        message = f"{call.about}: Lago's address answered {response.status_code} without Lago's JSON"
        raise UnavailableError("lago", message)
    return data


def _parsed(call: Call[Answer], data: object) -> Answer:
    if not isinstance(data, Mapping) or not data:
        raise unreadable(call.about, call.root)
    try:
        return prepare_object_response(call.answer, data)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:5])
        raise unreadable(call.about, fields) from None
