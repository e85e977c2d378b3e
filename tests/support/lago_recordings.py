"""What a real Lago answered (``tests/recordings/lago``), row by row as it was recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "recordings" / "lago"
CALLS = "calls.jsonl"
WHOLE_STORY = "stories/whole-story-and-lost-answers.jsonl"
ADOPTION = "stories/adoption-six-cases.jsonl"
CALLS_IN_ORDER = 158
"""So many of the calls are one series, the last twelve on 1 December; those after it were picked from the stories."""


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """One request with Lago's answer. ``status`` None: Lago never had the request."""

    place: str
    step: str
    method: str
    path: str
    query: str
    request: Any
    status: int | None
    response: Any
    caller_saw: str | None

    @property
    def key(self) -> str:
        """The id or code in the path: that of ``/api/v1/customers/{key}/…``."""
        return self.path.removeprefix("/api/v1/").partition("/")[2].partition("/")[0]

    @property
    def operation(self) -> str:
        """``GET customers/{id}``."""
        if not self.path.startswith("/api/v1/"):
            return f"{self.method} {self.path}"
        names = self.path.removeprefix("/api/v1/").split("/")
        return f"{self.method} {'/'.join('{id}' if number == 1 else name for number, name in enumerate(names))}"

    @property
    def code(self) -> str | None:
        return self.response.get("code") if isinstance(self.response, dict) else None

    @property
    def request_bytes(self) -> bytes:
        if self.request is None:
            return b""
        torn = self.request.get("_not_json") if isinstance(self.request, dict) else None
        return str(torn).encode() if torn is not None else json.dumps(self.request).encode()

    @property
    def response_bytes(self) -> bytes:
        return b"" if self.response is None else json.dumps(self.response).encode()


@dataclass(frozen=True)
class RecordedWebhook:
    headers: dict[str, str]
    raw: bytes

    @property
    def payload(self) -> Any:  # noqa: ANN401 - as Lago sent it
        return json.loads(self.raw)


def calls(name: str = CALLS) -> list[RecordedCall]:
    return [
        RecordedCall(
            place=f"{Path(name).stem}:{number}",
            caller_saw=row.get("what_the_caller_saw"),
            **{field: row[field] for field in ("step", "method", "path", "query", "request", "status", "response")},
        )
        for number, row in enumerate(_rows(name), 1)
    ]


def all_calls() -> list[RecordedCall]:
    stories = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("stories/*.jsonl"))
    return [call for name in (CALLS, *stories) for call in calls(name)]


def webhooks() -> list[RecordedWebhook]:
    return [RecordedWebhook(row["headers"], row["raw_body"].encode()) for row in _rows("webhooks.jsonl")]


def keys() -> dict[str, str]:
    """The keys with which the webhooks verify; their server is gone."""
    found: dict[str, str] = json.loads((FOLDER / "keys.json").read_text(encoding="utf-8"))
    return found


def _rows(name: str) -> list[Any]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
