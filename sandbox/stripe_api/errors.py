"""Stripe's errors: status, type, code, param and message, with Stripe's wording where clients read it."""

from dataclasses import dataclass

from sandbox.http import JsonDocument, ProviderResponse


@dataclass
class StripeApiError(Exception):  # a response, not a failure of the sandbox
    """``stored``: the endpoint had started, so the response is stored under the idempotency key.

    A validation error is not stored.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    stored: bool = False

    def response(self) -> ProviderResponse:
        return error_response(self.status, self.message, kind=self.type, code=self.code, param=self.param)


def error_response(
    status: int,
    message: str,
    *headers: tuple[str, str],
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> ProviderResponse:
    body: JsonDocument = {"message": message, "type": kind}
    if code is not None:
        body["code"] = code
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    if param is not None:
        body["param"] = param
    return ProviderResponse.of(status, {"error": body}, *headers)


def invalid_param(param: str | None, message: str, code: str | None = None) -> StripeApiError:
    """A validation error: the endpoint has not started, so nothing is stored under the idempotency key."""
    return StripeApiError(400, message, code=code, param=param)


def missing_param(param: str) -> StripeApiError:
    return invalid_param(param, f"Missing required param: {param}.", "parameter_missing")


def unsupported_param(param: str) -> StripeApiError:
    """A parameter that Stripe has and the sandbox has not: an error, since a test would otherwise pass wrongly."""
    return invalid_param(param, f"The sandbox does not implement the parameter {param}.", "sandbox_unsupported")


def not_found(object_type: str, key: str, param: str = "id", *, in_path: bool = True) -> StripeApiError:
    """404 for the object in the path, 400 for one named in a parameter (stripe.md 1.9)."""
    status = 404 if in_path else 400
    return StripeApiError(status, f"No such {object_type}: '{key}'", code="resource_missing", param=param, stored=True)


def internal_error() -> ProviderResponse:
    return error_response(500, "Sorry! There was an error while talking to one of our backends.", kind="api_error")
