"""Lago's error bodies, exact in their keys (lago.md 1.1)."""

from dataclasses import dataclass

from sandbox.http import Answer, Doc


@dataclass
class Refusal(Exception):  # noqa: N818  # it is an answer, not a failure of ours
    status: int
    body: Doc | None

    def answer(self) -> Answer:
        return Answer(self.status, b"") if self.body is None else Answer.of(self.status, self.body)


def bad_request(root: str) -> Refusal:
    message = f"BadRequest: param is missing or the value is empty or invalid: {root}"
    return Refusal(400, {"status": 400, "error": message})


def unreadable() -> Refusal:
    """Malformed JSON: 400 with nothing in it."""
    return Refusal(400, None)


def unauthorized() -> Refusal:
    return Refusal(401, {"status": 401, "error": "Unauthorized"})


def forbidden(code: str) -> Refusal:
    return Refusal(403, {"status": 403, "error": "Forbidden", "code": code})


def not_found(code: str) -> Refusal:
    """``code``: ``customer_not_found``, ``plan_not_found``, …, ``resource_not_found`` for an unknown route."""
    return Refusal(404, {"status": 404, "error": "Not Found", "code": code})


def not_allowed(code: str) -> Refusal:
    """A state refusal, not a wrong verb."""
    return Refusal(405, {"status": 405, "error": "Method Not Allowed", "code": code})


def invalid(details: dict[str, list[str]]) -> Refusal:
    return Refusal(422, _unprocessable("validation_errors", details))


def third_party(message: str) -> Refusal:
    return Refusal(422, _unprocessable("third_party_error", {"third_party": "Stripe", "thirdparty_error": message}))


def internal_error() -> Answer:
    return Answer.of(500, {"status": 500, "error": "Internal Server Error"})


def _unprocessable(code: str, details: Doc | dict[str, list[str]]) -> Doc:
    return {"status": 422, "error": "Unprocessable Entity", "code": code, "error_details": details}
