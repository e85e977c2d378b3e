"""Lago's error bodies, with exactly its keys (lago.md 1.1)."""

from dataclasses import dataclass

from sandbox.http import JsonDocument, ProviderResponse


@dataclass
class LagoApiError(Exception):  # a response, not a failure of the sandbox
    status: int
    body: JsonDocument | None

    def response(self) -> ProviderResponse:
        return ProviderResponse(self.status, b"") if self.body is None else ProviderResponse.of(self.status, self.body)


def bad_request(object_name: str) -> LagoApiError:
    message = f"BadRequest: param is missing or the value is empty or invalid: {object_name}"
    return LagoApiError(400, {"status": 400, "error": message})


def malformed_json() -> LagoApiError:
    """Malformed JSON: 400 with an empty body."""
    return LagoApiError(400, None)


def unauthorized() -> LagoApiError:
    return LagoApiError(401, {"status": 401, "error": "Unauthorized"})


def forbidden(code: str) -> LagoApiError:
    return LagoApiError(403, {"status": 403, "error": "Forbidden", "code": code})


def not_found(code: str) -> LagoApiError:
    """``code``: ``customer_not_found``, ``plan_not_found``, …, ``resource_not_found`` for an unknown route."""
    return LagoApiError(404, {"status": 404, "error": "Not Found", "code": code})


def not_allowed(code: str) -> LagoApiError:
    """405 for an object in the wrong state, not for a wrong method."""
    return LagoApiError(405, {"status": 405, "error": "Method Not Allowed", "code": code})


def validation_error(details: dict[str, list[str]]) -> LagoApiError:
    return LagoApiError(422, _unprocessable("validation_errors", details))


def third_party(message: str) -> LagoApiError:
    return LagoApiError(
        422, _unprocessable("third_party_error", {"third_party": "Stripe", "thirdparty_error": message})
    )


def internal_error() -> ProviderResponse:
    return ProviderResponse.of(500, {"status": 500, "error": "Internal Server Error"})


def _unprocessable(code: str, details: JsonDocument | dict[str, list[str]]) -> JsonDocument:
    return {"status": 422, "error": "Unprocessable Entity", "code": code, "error_details": details}
