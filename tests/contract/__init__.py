"""Check that every request to a provider, and every answer of the sandbox, is one that its official document allows.

``violations`` does not depend on our code. It checks one request, as it was sent, against the provider's own OpenAPI
document, and more strictly than the server does: a key that a server would drop silently is a violation.
``answer_violations`` checks one answer by types, required fields, enums and null.

The documents are outside the repository. If they are missing, ``available`` returns False and ``where`` says so.
"""

from typing import Literal

from tests.contract import lago_requests, stripe_requests
from tests.contract.answers import answer_violations, answers
from tests.contract.documents import available, where
from tests.contract.lago_requests import lago_violations
from tests.contract.operations import WireRequest
from tests.contract.stripe_requests import stripe_violations

__all__ = ["answer_violations", "available", "read", "violations", "where"]


def read() -> None:
    """Read both documents now. It takes a second, which would otherwise count against the first request's deadline."""
    if available():
        stripe_requests.operations()
        lago_requests.operations()
        answers("stripe")
        answers("lago")


def violations(  # noqa: PLR0913, PLR0917 - the six parts of a request, as an observer receives them
    provider: Literal["stripe", "lago"], method: str, path: str, query: str, body: bytes, content_type: str
) -> list[str]:
    """Return what the provider's document does not allow, one sentence each; empty means the request is fine.

    ``path`` and ``query`` are as they were sent: percent-encoded, and the query without its ``?``.
    It is pure and safe to call from several threads. Raises ``FileNotFoundError`` if ``available`` is False.
    """
    request = WireRequest(method.upper(), path, query, body, content_type)
    found = stripe_violations(request) if provider == "stripe" else lago_violations(request)
    return [f"{provider} {request.method} {path}: {sentence}" for sentence in found]
