"""Import of organizations, one chunk at a time: each record's row and links, and the repairs that were needed.

An organization with a customer id is observed until an operator adopts it: nothing is written to a customer that we did
not make. Nothing about money is guessed. An unknown plan is imported unchanged. If the file leaves open which customer
an organization is at a provider, or whether it is still a customer, the link is put on hold, with advice for an
operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Row, insert, select, update

from core.catalog.plans import Catalog
from core.common.names import name_key, without_refused
from core.db.database import acquire_advisory_locks, has_unique_names
from core.db.models.billing_links import IS_NO_CONFLICT, IS_NOT_BRAKED, BillingLink
from core.db.models.events import EventData
from core.db.models.organizations import ORGANIZATION_STATUSES, Organization
from core.events.event_types import ChangeContext
from core.inbox.service_events import subject_lock_key
from core.organizations import link_states
from core.organizations.links import new_link
from core.organizations.validation import MAX_ORGANIZATION_NAME_LENGTH, ORGANIZATION_ID_PATTERN
from core.ports.spec import PROVIDERS, Provider
from core.predecessor.files import FileFinding, OldOrganization, read_organizations
from core.predecessor.published_events import record_published
from core.predecessor.report import ChunkResult

MAX_CUSTOMER_ID_LENGTH: Final = 255
MAX_PLAN_TIER_LENGTH: Final = 200
CUSTOMER_ID_FIELDS: Final[dict[Provider, str]] = {"stripe": "stripe_customer_id", "lago": "lago_customer_id"}

ImportedCustomerId = tuple[Provider, str]


@dataclass(frozen=True, slots=True)
class ReviewReason:
    """Why a link is on hold. ``message`` says what the operator can do."""

    code: str
    message: str


@dataclass(slots=True)
class ImportedOrganization:
    """What one record of the file becomes, if it is not in the database yet."""

    old: OldOrganization
    name: str
    name_key: str
    plan_tier: str
    status: str
    customer_ids: dict[Provider, str]
    may_share_name: bool = False
    review_reasons: dict[Provider, list[ReviewReason]] = field(
        default_factory=lambda: {provider: [] for provider in PROVIDERS}
    )
    findings: list[FileFinding] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.old.id

    def record_repair(self, reason: str) -> None:
        self.findings.append(FileFinding("repair", reason, self.old.position, self.id))

    def record_loss(self, reason: str) -> None:
        self.findings.append(FileFinding("loss", reason, self.old.position, self.id))

    def require_review(self, code: str, message: str, providers: Iterable[Provider] = PROVIDERS) -> None:
        for provider in providers:
            self.review_reasons[provider].append(ReviewReason(code, message))


@dataclass(slots=True)
class ExistingState:
    """What the database has for this chunk: its organizations, and the owners of its names and customer ids."""

    organizations: dict[str, Row[str, str, str, str, datetime]]
    customer_ids: dict[tuple[str, str], str | None]
    customer_id_owners: dict[tuple[str, str], str]
    name_owners: dict[str, str]


class OrganizationImport:
    """``conflicting_ids``: customer ids that occur more than once in the file.

    All links are due as of ``started_at``. So a change made during a long import becomes due after all of them.
    """

    def __init__(self, catalog: Catalog, conflicting_ids: frozenset[ImportedCustomerId], started_at: datetime) -> None:
        self._catalog = catalog
        self._conflicting_ids = conflicting_ids
        self._started_at = started_at

    def import_chunk(self, change: ChangeContext, old_organizations: list[OldOrganization]) -> ChunkResult:
        result = ChunkResult()
        imported = [self._to_imported(old) for old in old_organizations if _is_usable(old, result)]
        existing = _existing_state(change, imported)
        new: list[ImportedOrganization] = []
        contested: dict[tuple[str, Provider], tuple[str, str]] = {}
        names_are_unique = has_unique_names(change.session)
        for each in imported:
            if names_are_unique:
                _resolve_shared_name(each, existing)
            else:
                each.may_share_name = True
            if each.id in existing.organizations:
                _record_differences(each, existing, result)
            else:
                contested |= self._assign_customer_ids(each, existing)
                new.append(each)
            result.findings += each.findings
        if new:
            _insert(change, new, self._started_at)
        for (owner, provider), (customer_id, other_id) in contested.items():
            message = _duplicate_id_message(owner, provider, customer_id, other_id, _advice_if_correct(owner, provider))
            _put_owner_on_hold(change, owner, provider, message)
        result.counts.new = len(new)
        result.counts.unchanged = len(imported) - len(new)
        return result

    def _to_imported(self, old: OldOrganization) -> ImportedOrganization:
        visible = without_refused(old.name)
        is_empty = not visible.strip()
        # The cut may leave a joiner without what it joins.
        name = old.id if is_empty else without_refused(visible[:MAX_ORGANIZATION_NAME_LENGTH])
        imported = ImportedOrganization(
            old, name, name_key(name), old.plan_tier[:MAX_PLAN_TIER_LENGTH], old.status, _customer_ids(old)
        )
        if visible != old.name:
            imported.record_repair("characters that nobody sees were removed from the name")
        if is_empty:
            imported.record_repair(
                "the empty name was replaced by the id; billing waits until the organization is renamed"
            )
            imported.require_review(
                "empty_name",
                f"the predecessor's file had no name for it: run `billing-sync set {old.id} --name …`, then "
                f"`billing-sync retry {old.id}`",
            )
        elif name != visible:
            imported.record_repair(f"the name was cut to {MAX_ORGANIZATION_NAME_LENGTH} characters")
        if old.created_at is None:
            imported.record_repair("created_at was set to the time of the import")
        if old.status not in ORGANIZATION_STATUSES:
            imported.status = "suspended"
            imported.record_repair(
                f"the unknown status {_quote(old.status)} was imported as suspended; billing waits for an operator"
            )
            imported.require_review(
                "unknown_status",
                f"the predecessor's file had the unknown status {_quote(old.status)}: run `billing-sync set "
                f"{old.id} --status …` with one of {', '.join(ORGANIZATION_STATUSES)}, then `billing-sync retry "
                f"{old.id}`",
            )
        self._check_plan(imported)
        return imported

    def _check_plan(self, imported: ImportedOrganization) -> None:
        plan = imported.old.plan_tier
        if len(plan) > MAX_PLAN_TIER_LENGTH:
            imported.record_loss(f"plan_tier is {len(plan)} characters long and was cut to {MAX_PLAN_TIER_LENGTH}")
        if plan in self._catalog.plans:
            return
        reason = f"the unknown plan {_quote(plan)} was imported unchanged"
        if imported.status == "deleted":
            imported.record_repair(reason)
        else:
            imported.record_repair(f"{reason}; billing waits until the organization has a plan of the catalog")

    def _assign_customer_ids(
        self, imported: ImportedOrganization, existing: ExistingState
    ) -> dict[tuple[str, Provider], tuple[str, str]]:
        """Assigns the ids that are free. Returns the links of other organizations that have one of the same ids."""
        contested: dict[tuple[str, Provider], tuple[str, str]] = {}
        for provider, customer_id in list(imported.customer_ids.items()):
            if len(customer_id) <= MAX_CUSTOMER_ID_LENGTH:
                existing.customer_id_owners.setdefault((provider, customer_id), imported.id)
            loss = _loss_reason(imported.id, provider, customer_id, existing)
            owner = existing.customer_id_owners.get((provider, customer_id), imported.id)
            if loss is not None:
                imported.record_loss(loss)
                del imported.customer_ids[provider]
            if owner != imported.id:
                contested[owner, provider] = customer_id, imported.id
                message = _duplicate_id_message(
                    imported.id, provider, customer_id, owner, _advice_to_set_id(imported.id, provider)
                )
                imported.require_review("customer_id_in_use", message, [provider])
            elif loss is not None:
                imported.require_review(
                    "customer_id_not_imported", f"{loss}; {_advice_to_set_id(imported.id, provider)}", [provider]
                )
            elif (provider, customer_id) in self._conflicting_ids:
                other = "another organization in the imported file"
                message = _duplicate_id_message(
                    imported.id, provider, customer_id, other, _advice_if_correct(imported.id, provider)
                )
                imported.require_review("customer_id_in_use", message, [provider])
        return contested


def find_conflicting_ids(path: Path) -> frozenset[ImportedCustomerId]:
    """Customer ids that more than one organization in the file has."""
    seen_hashes: set[int] = set()
    conflicting: set[ImportedCustomerId] = set()
    for item in read_organizations(path):
        if isinstance(item, OldOrganization):
            for customer in _customer_ids(item).items():
                customer_hash = hash(customer)
                if customer_hash in seen_hashes:
                    conflicting.add(customer)
                seen_hashes.add(customer_hash)
    return frozenset(conflicting)


def _customer_ids(old: OldOrganization) -> dict[Provider, str]:
    ids: dict[Provider, str | None] = {"stripe": old.stripe_customer_id, "lago": old.lago_customer_id}
    return {provider: customer_id for provider, customer_id in ids.items() if customer_id is not None}


def _is_usable(old: OldOrganization, result: ChunkResult) -> bool:
    if ORGANIZATION_ID_PATTERN.fullmatch(old.id):
        return True
    reason = "unusable record: its id has more than 60 characters after 'org_'"
    result.findings.append(FileFinding("loss", reason, old.position, old.id))
    result.counts.rejected += 1
    return False


def _existing_state(change: ChangeContext, imported: list[ImportedOrganization]) -> ExistingState:
    session = change.session
    ids = [each.id for each in imported]
    imported_ids = {customer_id for each in imported for customer_id in each.customer_ids.values()}
    rows = session.execute(
        select(
            Organization.id, Organization.name, Organization.plan_tier, Organization.status, Organization.created_at
        ).where(Organization.id.in_(ids))
    ).all()
    links = select(BillingLink.org_id, BillingLink.provider, BillingLink.customer_id)
    own_links = session.execute(links.where(BillingLink.org_id.in_([row.id for row in rows])))
    owner_links = session.execute(
        links.where(BillingLink.provider.in_(PROVIDERS), BillingLink.customer_id.in_(imported_ids))
    )
    names = session.execute(
        select(Organization.name_key, Organization.id)
        .where(Organization.name_key.in_({each.name_key for each in imported}), Organization.status != "deleted")
        .order_by(Organization.may_share_name.desc(), Organization.id.desc())  # the last one of a name is its owner
    )
    return ExistingState(
        {row.id: row for row in rows},
        {(org_id, provider): customer_id for org_id, provider, customer_id in own_links},
        {(provider, customer_id): org_id for org_id, provider, customer_id in owner_links if customer_id is not None},
        {row.name_key: row.id for row in names},
    )


def _resolve_shared_name(imported: ImportedOrganization, existing: ExistingState) -> None:
    """Of two live organizations with one name the second shares it, so that both can be stored."""
    current = existing.organizations.get(imported.id)
    if imported.status == "deleted" or (
        current is not None and (current.name != imported.name or current.status == "deleted")
    ):
        return
    owner = existing.name_owners.setdefault(imported.name_key, imported.id)
    if owner != imported.id:
        imported.record_repair(
            f"its name is also the name of {owner}: both organizations keep it, {owner} and {imported.id}"
        )
        imported.may_share_name = True


def _record_differences(imported: ImportedOrganization, existing: ExistingState, result: ChunkResult) -> None:
    """The organization exists already and stays as it is. What was changed since the import is reported."""
    current = existing.organizations[imported.id]
    differs = [name for name in ("name", "plan_tier", "status") if getattr(current, name) != getattr(imported, name)]
    if imported.old.created_at not in {None, current.created_at}:
        differs.append("created_at")
    for provider, customer_id in imported.customer_ids.items():
        current_id = existing.customer_ids.get((imported.id, provider))
        loss = _loss_reason(imported.id, provider, customer_id, existing)
        if current_id is None and loss is not None:
            imported.record_loss(loss)  # no operator has resolved it since the import
        elif current_id != customer_id:
            differs.append(CUSTOMER_ID_FIELDS[provider])
    if differs:
        reason = f"kept the database's version: {', '.join(differs)} changed since the import"
        result.conflicts.append(FileFinding("repair", reason, imported.old.position, imported.id))


def _loss_reason(org_id: str, provider: Provider, customer_id: str, existing: ExistingState) -> str | None:
    name = CUSTOMER_ID_FIELDS[provider]
    if len(customer_id) > MAX_CUSTOMER_ID_LENGTH:
        return (
            f"{name} is {len(customer_id)} characters long, more than {MAX_CUSTOMER_ID_LENGTH}: not imported, billing "
            "waits for an operator"
        )
    owner = existing.customer_id_owners.get((provider, customer_id), org_id)
    if owner == org_id:
        return None
    return (
        f"{name} {_quote(customer_id)} is also used by {owner}: {owner} keeps it and {org_id} gets none; "
        "billing of both waits for an operator"
    )


def _duplicate_id_message(org_id: str, provider: Provider, customer_id: str, other: str, advice: str) -> str:
    return f"{CUSTOMER_ID_FIELDS[provider]} {_quote(customer_id)} is used by both {other} and {org_id}: {advice}"


def _advice_if_correct(org_id: str, provider: Provider) -> str:
    return (
        f"if it belongs to {org_id}, run `billing-sync retry {org_id}`; if not, set the right id with "
        f"`billing-sync set-customer-id {org_id} --{provider} ID`"
    )


def _advice_to_set_id(org_id: str, provider: Provider) -> str:
    return (
        f"set its own customer id with `billing-sync set-customer-id {org_id} --{provider} ID`; if it has none, run "
        f"`billing-sync retry {org_id}` to create a new customer"
    )


def _insert(change: ChangeContext, new: list[ImportedOrganization], due_since: datetime) -> None:
    # A service event about one of them is handled either before, and waits, or after, and finds the organization.
    acquire_advisory_locks(change.session, *(subject_lock_key(each.id) for each in new))
    connection = change.session.connection()
    connection.execute(insert(Organization), [_organization_row(each, change.now) for each in new])
    connection.execute(insert(BillingLink), [row for each in new for row in _link_rows(each, change.now, due_since)])
    events: Iterator[tuple[str, EventData]] = ((each.id, {"plan_tier": each.plan_tier}) for each in new)
    record_published(change, "organization.created", events)


def _organization_row(imported: ImportedOrganization, now: datetime) -> dict[str, object]:
    created_at = imported.old.created_at or now
    return {
        "id": imported.id,
        "name": imported.name,
        "name_key": imported.name_key,
        "may_share_name": imported.may_share_name,
        "plan_tier": imported.plan_tier,
        "status": imported.status,
        "created_at": created_at,
        "updated_at": now,
        "version": 1,
    }


def _link_rows(imported: ImportedOrganization, now: datetime, due_since: datetime) -> Iterator[dict[str, object]]:
    for provider in PROVIDERS:
        customer_id = imported.customer_ids.get(provider)
        link = new_link(imported.id, provider, now, maybe_older=True, customer_id=customer_id)
        reasons = imported.review_reasons[provider]
        yield link | {
            "applied_version": link["desired_version"] if imported.status == "deleted" else 0,
            "next_sweep_at": due_since,
            "state": "on_hold" if reasons else "active",
            "error_kind": "import" if reasons else None,
            "error_code": reasons[0].code if reasons else None,
            "error_message": "; ".join(reason.message for reason in reasons) or None,
            "error_at": now if reasons else None,
        }


def _put_owner_on_hold(change: ChangeContext, owner: str, provider: Provider, message: str) -> None:
    """Puts the link on hold, unless it is for a conflict or by the payment brake.

    The new generation ends a running sync attempt, which relied on the id.
    """
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == owner, BillingLink.provider == provider, IS_NO_CONFLICT, IS_NOT_BRAKED)
        .values(
            **link_states.values_after("customer_id_contested"),
            generation=BillingLink.generation + 1,
            error_kind="import",
            error_code="customer_id_in_use",
            error_message=message,
            error_request_id=None,
            error_at=change.now,
        )
        .execution_options(synchronize_session=False)
    )


def _quote(value: str) -> str:
    """A value of the file for a message, cut so that the file cannot decide how long the message is."""
    return repr(value if len(value) <= 60 else f"{value[:60]}…")  # noqa: PLR2004 - fits on a line
