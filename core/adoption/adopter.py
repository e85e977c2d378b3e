"""Applies an adoption table row by row: reads again what is there, compares, and adopts what did not change.

It only reads at the providers, and no transaction is open meanwhile. Each row is one transaction, so a run that was
killed goes on where it was: what is adopted by then is found by its identities, and is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from sqlalchemy.orm import Session

from core.adoption import adoption, provider_objects
from core.adoption.adoption import AdoptedOrganization, AdoptionRules
from core.adoption.guards import DISCOVER_AGAIN, NotAdoptedError
from core.adoption.provider_objects import ProviderObjects
from core.adoption.row import AdoptionRow, AdoptionSide
from core.common.clock import Clock
from core.db.database import Database
from core.events.event_types import Cause, ChangeContext
from core.ports.inventory import Inventory
from core.ports.spec import PROVIDER_NAMES, Provider

AdoptionResultKind = Literal["adopted", "already_adopted", "left", "rejected", "skipped", "not_tried"]
"""left: it changed meanwhile, or cannot be adopted just now. rejected: it cannot be adopted as the row says. skipped:
the row asks for nothing. not_tried: the limit was reached."""

ReadT = TypeVar("ReadT")


class ReadInventory(Protocol):
    def __call__(self, provider: Provider, read: Callable[[Inventory], ReadT], /) -> ReadT:
        """Makes the reads of ``read`` within the rate limit. Raises ``ProviderError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionResult:
    """What became of one row. ``reason``: why it was not adopted. ``remarks``: what follows from the adoption."""

    row: AdoptionRow
    kind: AdoptionResultKind
    org_id: str | None
    reason: str | None = None
    remarks: tuple[str, ...] = ()
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopter:
    """``is_dry_run``: everything is read and checked, and nothing is stored."""

    database: Database
    read: ReadInventory
    rules: AdoptionRules
    clock: Clock
    cause: Cause
    is_dry_run: bool = False

    def apply(self, rows: Iterable[AdoptionRow], limit: int | None = None) -> Iterator[AdoptionResult]:
        """One result for each row, in order. ``limit``: adopt so many of those that are not adopted yet.

        Raises what the provider raises when it is away for long; the results until then hold.
        """
        remaining = limit
        for row in rows:
            if row.action in {"skip", "conflict"}:
                yield AdoptionResult(row=row, kind="skipped", org_id=row.org_id, reason=row.reason)
                continue
            before = self._adopted_before(row)
            if before is not None:
                yield before
            elif remaining == 0:
                yield AdoptionResult(row=row, kind="not_tried", org_id=row.org_id)
            else:
                result = self.adopt(row)
                if remaining is not None and result.kind == "adopted":
                    remaining -= 1
                yield result

    def adopt(self, row: AdoptionRow) -> AdoptionResult:
        try:
            objects = {provider: self._read_again(provider, side) for provider, side in row.sides.items()}
            adopted = self._store(row, objects)
        except NotAdoptedError as error:
            # Another run may have adopted it since.
            if (before := self._adopted_before(row)) is not None:
                return before
            kind: AdoptionResultKind = "left" if error.is_left else "rejected"
            return AdoptionResult(row=row, kind=kind, org_id=row.org_id, reason=error.reason)
        if adopted.is_adopted_before:
            return AdoptionResult(row=row, kind="already_adopted", org_id=adopted.org_id)
        org_id = None if self.is_dry_run and adopted.is_new else adopted.org_id
        return AdoptionResult(row=row, kind="adopted", org_id=org_id, remarks=adopted.remarks, is_new=adopted.is_new)

    def _adopted_before(self, row: AdoptionRow) -> AdoptionResult | None:
        with self.database.read() as session:
            org_id = adoption.adopted_before(session, row)
        return None if org_id is None else AdoptionResult(row=row, kind="already_adopted", org_id=org_id)

    def _read_again(self, provider: Provider, side: AdoptionSide) -> ProviderObjects:
        """Raises ``NotAdoptedError`` if it is not what the row says any more."""
        key = side.customer_id if provider == "stripe" else side.external_customer_id or side.customer_id
        customer, subscriptions = self.read(
            provider, lambda inventory: (inventory.customer(key), inventory.subscriptions_of(key))
        )
        if customer is None or customer.deleted:
            message = f"customer {key} is no longer at {PROVIDER_NAMES[provider]}"
            raise NotAdoptedError(message, is_left=True)
        if len(subscriptions) > 1:
            ids = ", ".join(each.id for each in subscriptions)
            message = f"customer {key} has {len(subscriptions)} subscriptions at {PROVIDER_NAMES[provider]}: {ids}"
            raise NotAdoptedError(message, is_left=True)
        found = ProviderObjects(customer=customer, subscription=subscriptions[0] if subscriptions else None)
        if changed := provider_objects.changes(provider, side, provider_objects.side_of(found)):
            message = f"it changed: {'; '.join(map(str, changed))}: {DISCOVER_AGAIN}"
            raise NotAdoptedError(message, is_left=True)
        return found

    def _store(self, row: AdoptionRow, objects: dict[Provider, ProviderObjects]) -> AdoptedOrganization:
        with self.database.write() as session:
            if not self.is_dry_run:
                return self._adopt(session, row, objects)
            savepoint = session.begin_nested()
            adopted = self._adopt(session, row, objects)
            savepoint.rollback()
            return adopted

    def _adopt(
        self, session: Session, row: AdoptionRow, objects: dict[Provider, ProviderObjects]
    ) -> AdoptedOrganization:
        return adoption.adopt(ChangeContext(session, self.clock(), self.cause), row, objects, self.rules)
