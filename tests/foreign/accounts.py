"""Both providers read and edited by plain HTTP, as a user at the dashboard sees them. Nothing goes through our code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import httpx

from tests.foreign.product import Document, StoryFailedError

REQUEST_SECONDS: Final = 60.0
MAX_PAGES: Final = 100
PAGE_SIZE: Final = 100
_ENDED: Final = frozenset({"canceled", "incomplete_expired"})


class StripeDashboard:
    """``created_since``: Unix seconds; the customers of an account are listed, newest first, down to that time."""

    def __init__(self, base_url: str, secret_key: str, created_since: int = 0) -> None:
        headers = {"Authorization": f"Bearer {secret_key}"}
        self._created_since = created_since
        self._base_url = base_url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=REQUEST_SECONDS)

    def customers_of(self, org_id: str) -> list[Document]:
        """The customers marked with this organization; each is read by itself, too."""
        marked = [each["id"] for each in self._customers() if _mark(each) == org_id]
        return [self.get(f"/v1/customers/{customer_id}") for customer_id in marked]

    def live_subscriptions(self, customer_id: str) -> list[Document]:
        found = self.get("/v1/subscriptions", customer=customer_id, status="all", limit=str(PAGE_SIZE))["data"]
        return [each for each in found if each["status"] not in _ENDED]

    def price(self, lookup_key: str) -> Document:
        found = self.get("/v1/prices", **{"lookup_keys[]": lookup_key, "active": "true"})["data"]
        return dict(_only(found, f"price with lookup key {lookup_key}"))

    def account(self) -> Document:
        return self.get("/v1/account")

    def create_customer(self, **fields: str) -> Document:
        return self.post("/v1/customers", **fields)

    def get(self, path: str, **query: str) -> Document:
        return _document(self._client.get(self._base_url + path, params=query))

    def post(self, path: str, **form: str) -> Document:
        return _document(self._client.post(self._base_url + path, data=form))

    def close(self) -> None:
        self._client.close()

    def _customers(self) -> Iterator[Document]:
        query = {"limit": str(PAGE_SIZE)}
        for _ in range(MAX_PAGES):
            page = self.get("/v1/customers", **query)
            yield from (each for each in page["data"] if each["created"] >= self._created_since)
            if not page["has_more"] or page["data"][-1]["created"] < self._created_since:
                return
            query["starting_after"] = page["data"][-1]["id"]
        message = f"Stripe lists more than {MAX_PAGES * PAGE_SIZE} customers since the beginning of the story"
        raise StoryFailedError(message)


class LagoDashboard:
    def __init__(self, base_url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(
            base_url=f"{base_url.rstrip('/')}/api/v1/", headers=headers, timeout=REQUEST_SECONDS
        )

    def customer(self, org_id: str) -> Document:
        return dict(self._get(f"customers/{org_id}")["customer"])

    def external_ids(self) -> Iterator[str]:
        """Of all customers of the organization."""
        for number in range(1, MAX_PAGES + 1):
            page = self._get("customers", page=str(number), per_page=str(PAGE_SIZE))
            yield from (str(each["external_id"]) for each in page["customers"])
            if not page["meta"]["next_page"]:
                return
        message = f"Lago lists more than {MAX_PAGES * PAGE_SIZE} customers"
        raise StoryFailedError(message)

    def live_subscriptions(self, org_id: str) -> list[Document]:
        query = {"external_customer_id": org_id, "status[]": ["active", "pending"], "per_page": str(PAGE_SIZE)}
        return list(_document(self._client.get("subscriptions", params=query))["subscriptions"])

    def plan(self, code: str) -> Document:
        return dict(self._get(f"plans/{code}")["plan"])

    def write_customer(self, org_id: str, name: str) -> Document:
        """Create the customer, or rename it: Lago has one call for both."""
        body = {"customer": {"external_id": org_id, "name": name}}
        return dict(_document(self._client.post("customers", json=body))["customer"])

    def close(self) -> None:
        self._client.close()

    def _get(self, path: str, **query: str) -> Document:
        return _document(self._client.get(path, params=query))


def _document(response: httpx.Response) -> Document:
    if response.is_error:
        # An answer to a wrong key may repeat a part of it.
        text = "" if response.status_code == httpx.codes.UNAUTHORIZED else f": {response.text[:300]}"
        message = f"{response.request.method} {response.request.url.path} is answered {response.status_code}{text}"
        raise StoryFailedError(message)
    return dict(response.json())


def _only(found: list[Document], what: str) -> Document:
    if len(found) != 1:
        message = f"expected one {what}, found {len(found)}"
        raise StoryFailedError(message)
    return found[0]


def _mark(customer: Document) -> object:
    return (customer.get("metadata") or {}).get("billing_sync_org_id")
