"""Every request we send to a biller is one its official document allows.

``violations`` knows nothing of our code: it holds one request, as it went over the wire, against Stripe's and Lago's
own OpenAPI documents, more strictly than those servers do. A key a server would drop without a word is a violation.
The documents stay outside the repository; where they are missing, ``available`` is False and ``where`` says so.
"""

from typing import Literal

from tests.contract import lago_requests, stripe_requests
from tests.contract.documents import available, where
from tests.contract.lago_requests import lago_violations
from tests.contract.operations import WireRequest
from tests.contract.stripe_requests import stripe_violations

__all__ = ["available", "read", "violations", "where"]


def read() -> None:
    """Read both documents now, which takes a second, and not within somebody's first request and its deadline."""
    if available():
        stripe_requests.operations()
        lago_requests.operations()


def violations(  # noqa: PLR0913, PLR0917 - the six parts of a request, as an observer receives them
    provider: Literal["stripe", "lago"], method: str, path: str, query: str, body: bytes, content_type: str
) -> list[str]:
    """Return what the provider's document does not allow, one sentence each; empty means the request is fine.

    ``path`` and ``query`` as they came over the wire: still percent-encoded, the query without its ``?``.
    Pure and safe to call from several threads. Raises ``FileNotFoundError`` where ``available`` is False.
    """
    request = WireRequest(method.upper(), path, query, body, content_type)
    found = stripe_violations(request) if provider == "stripe" else lago_violations(request)
    return [f"{provider} {request.method} {path}: {sentence}" for sentence in found]
