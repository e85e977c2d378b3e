"""Stripe's errors: status, type, code, param and message, in its words where clients look at them."""

from dataclasses import dataclass

from sandbox.http import Answer, Doc


@dataclass
class Refusal(Exception):  # noqa: N818  # it is an answer, not a failure of ours
    """``stored``: the endpoint had begun, so the answer is kept under the idempotency key; validation is not."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    stored: bool = False

    def answer(self) -> Answer:
        return error(self.status, self.message, kind=self.type, code=self.code, param=self.param)


def error(
    status: int,
    message: str,
    *headers: tuple[str, str],
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> Answer:
    body: Doc = {"message": message, "type": kind}
    if code is not None:
        body["code"] = code
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    if param is not None:
        body["param"] = param
    return Answer.of(status, {"error": body}, *headers)


def invalid(param: str | None, message: str, code: str | None = None) -> Refusal:
    """Validation: the endpoint has not begun, so nothing is kept under the idempotency key."""
    return Refusal(400, message, code=code, param=param)


def missing_param(param: str) -> Refusal:
    return invalid(param, f"Missing required param: {param}.", "parameter_missing")


def unsupported(param: str) -> Refusal:
    """Stripe knows it, this stand-in does not: refused aloud, for silence would be a false green."""
    return invalid(param, f"The sandbox does not implement the parameter {param}.", "sandbox_unsupported")


def no_such(noun: str, key: str, param: str = "id", *, own: bool = True) -> Refusal:
    """404 for the object in the path, 400 for one named in a parameter (stripe.md 1.9)."""
    status = 404 if own else 400
    return Refusal(status, f"No such {noun}: '{key}'", code="resource_missing", param=param, stored=True)


def internal_error() -> Answer:
    return error(500, "Sorry! There was an error while talking to one of our backends.", kind="api_error")
