"""Organizations of the old store's file, a part at a time: what each becomes here, and what had to be decided.

Nothing is guessed about money: a plan that nobody knows stays as written, and where the file leaves in doubt who
somebody is at a biller, or whether it is still a customer, the link is held with a sentence for a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Row, insert, select, update

from core.catalog.plans import Catalog
from core.db.database import acquire_advisory_locks
from core.db.models.billing_links import BillingLink
from core.db.models.events import EventData
from core.db.models.organizations import ORGANIZATION_STATUSES, Organization
from core.events.event_types import ChangeContext
from core.inbox.service_events import subject_lock_key
from core.organizations.links import new_link
from core.organizations.validation import MAX_ORGANIZATION_NAME_LENGTH, ORGANIZATION_ID_PATTERN, name_key
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
    """Why a link waits for a person; the sentence says what that person can do."""

    code: str
    message: str


@dataclass(slots=True)
class ImportedOrganization:
    """What one record of the file becomes, were it not here yet."""

    old: OldOrganization
    name: str
    name_key: str
    plan_tier: str
    status: str
    customer_ids: dict[Provider, str]
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
    """What the database holds of those in this part, and who has their names and billing ids."""

    organizations: dict[str, Row[str, str, str, str, datetime]]
    customer_ids: dict[tuple[str, str], str | None]
    customer_id_owners: dict[tuple[str, str], str]
    name_owners: dict[str, str]


class OrganizationImport:
    """``in_doubt``: billing ids that stand more than once in the file.

    All of it is due since ``began``, so that a change from the midst of a long import came due after every part of it.
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
        for each in imported:
            _resolve_shared_name(each, existing)
            if each.id in existing.organizations:
                _record_differences(each, existing, result)
            else:
                contested |= self._assign_customer_ids(each, existing)
                new.append(each)
            result.findings += each.findings
        if new:
            _insert(change, new, self._started_at)
        for (owner, provider), (customer_id, other_id) in contested.items():
            message = _duplicate_id_message(owner, provider, customer_id, other_id, _advice_if_correct(owner))
            _put_owner_on_hold(change, owner, provider, message)
        result.counts.new = len(new)
        result.counts.unchanged = len(imported) - len(new)
        return result

    def _to_imported(self, old: OldOrganization) -> ImportedOrganization:
        name = old.name[:MAX_ORGANIZATION_NAME_LENGTH] if old.name.strip() else old.id
        imported = ImportedOrganization(
            old, name, name_key(name), old.plan_tier[:MAX_PLAN_TIER_LENGTH], old.status, _customer_ids(old)
        )
        if not old.name.strip():
            imported.record_repair("its id stands in the place of the empty name; billing waits until it has one")
            imported.require_review(
                "empty_name", f"the old store held no name for it: rename it, then `billing-sync retry {old.id}`"
            )
        elif name != old.name:
            imported.record_repair(f"only the first {MAX_ORGANIZATION_NAME_LENGTH} characters of the name were kept")
        if old.created_at is None:
            imported.record_repair("the time of the import stands for created_at")
        if old.status not in ORGANIZATION_STATUSES:
            imported.status = "suspended"
            imported.record_repair(
                f"the unknown status {_quote(old.status)} was read as suspended; billing waits for a decision"
            )
            imported.require_review(
                "unknown_status",
                f"the old store held the unknown status {_quote(old.status)}: set its status to one of "
                f"{', '.join(ORGANIZATION_STATUSES)}, then `billing-sync retry {old.id}`",
            )
        self._check_plan(imported)
        return imported

    def _check_plan(self, imported: ImportedOrganization) -> None:
        plan = imported.old.plan_tier
        if len(plan) > MAX_PLAN_TIER_LENGTH:
            imported.record_loss(
                f"plan_tier is {len(plan)} characters long: only the first {MAX_PLAN_TIER_LENGTH} were kept"
            )
        if plan in self._catalog.plans:
            return
        reason = f"the unknown plan {_quote(plan)} was kept as written"
        if imported.status == "deleted":
            imported.record_repair(reason)
        else:
            imported.record_repair(f"{reason}; billing waits until it gets a plan of the catalog")

    def _assign_customer_ids(
        self, imported: ImportedOrganization, existing: ExistingState
    ) -> dict[tuple[str, Provider], tuple[str, str]]:
        """Take the ids that are free; returns the links that lose their claim's certainty to this organization."""
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
                    imported.id, provider, customer_id, owner, _advice_to_set_id(imported.id)
                )
                imported.require_review("customer_id_in_use", message, [provider])
            elif loss is not None:
                imported.require_review(
                    "customer_id_not_imported", f"{loss}: {_advice_to_set_id(imported.id)}", [provider]
                )
            elif (provider, customer_id) in self._conflicting_ids:
                other = "another organization of the imported file"
                message = _duplicate_id_message(
                    imported.id, provider, customer_id, other, _advice_if_correct(imported.id)
                )
                imported.require_review("customer_id_in_use", message, [provider])
        return contested


def find_conflicting_ids(path: Path) -> frozenset[ImportedCustomerId]:
    """Billing ids that more than one organization of the file carries."""
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
    reason = "no usable record: its id has more than 60 characters behind 'org_'"
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
        select(Organization.name_key, Organization.id).where(
            Organization.name_key.in_({each.name_key for each in imported}), Organization.status != "deleted"
        )
    )
    return ExistingState(
        {row.id: row for row in rows},
        {(org_id, provider): customer_id for org_id, provider, customer_id in own_links},
        {(provider, customer_id): org_id for org_id, provider, customer_id in owner_links if customer_id is not None},
        {row.name_key: row.id for row in names},
    )


def _resolve_shared_name(imported: ImportedOrganization, existing: ExistingState) -> None:
    """Two live organizations of one name: the second is found under a key that no name can have."""
    current = existing.organizations.get(imported.id)
    if imported.status == "deleted" or (
        current is not None and (current.name != imported.name or current.status == "deleted")
    ):
        return
    owner = existing.name_owners.setdefault(imported.name_key, imported.id)
    if owner != imported.id:
        imported.record_repair(
            f"its name is that of {owner} as well: both were kept under it, {owner} and {imported.id}"
        )
        # name_key() strips, so no name that anybody may choose has a key that ends in a blank.
        imported.name_key = f"{imported.name_key} {imported.id} "


def _record_differences(imported: ImportedOrganization, existing: ExistingState, result: ChunkResult) -> None:
    """It is here already and stays as it is; what people have changed since is named."""
    current = existing.organizations[imported.id]
    differs = [name for name in ("name", "plan_tier", "status") if getattr(current, name) != getattr(imported, name)]
    if imported.old.created_at not in {None, current.created_at}:
        differs.append("created_at")
    for provider, customer_id in imported.customer_ids.items():
        current_id = existing.customer_ids.get((imported.id, provider))
        loss = _loss_reason(imported.id, provider, customer_id, existing)
        if current_id is None and loss is not None:
            imported.record_loss(loss)  # nobody has decided since the import that brought it
        elif current_id != customer_id:
            differs.append(CUSTOMER_ID_FIELDS[provider])
    if differs:
        reason = f"kept ours: {', '.join(differs)} changed here since"
        result.conflicts.append(FileFinding("repair", reason, imported.old.position, imported.id))


def _loss_reason(org_id: str, provider: Provider, customer_id: str, existing: ExistingState) -> str | None:
    name = CUSTOMER_ID_FIELDS[provider]
    if len(customer_id) > MAX_CUSTOMER_ID_LENGTH:
        return (
            f"{name} is {len(customer_id)} characters long, more than {MAX_CUSTOMER_ID_LENGTH}: left out, billing waits"
        )
    owner = existing.customer_id_owners.get((provider, customer_id), org_id)
    if owner == org_id:
        return None
    return (
        f"{name} {_quote(customer_id)} stands on {owner} as well: {owner} keeps it and {org_id} gets none; "
        "billing of both waits for a decision"
    )


def _duplicate_id_message(org_id: str, provider: Provider, customer_id: str, other: str, advice: str) -> str:
    return f"{CUSTOMER_ID_FIELDS[provider]} {_quote(customer_id)} stands on {other} as well as on {org_id}: {advice}"


def _advice_if_correct(org_id: str) -> str:
    return (
        f"if it is {org_id}'s, `billing-sync retry {org_id}`; if not, give it another with `billing-sync "
        "set-customer-id`"
    )


def _advice_to_set_id(org_id: str) -> str:
    return (
        f"give it its own with `billing-sync set-customer-id`, or if it has none, `billing-sync retry {org_id}` "
        "makes a new customer"
    )


def _insert(change: ChangeContext, new: list[ImportedOrganization], due_since: datetime) -> None:
    # A message about one of them is judged either before, and waits to be taken, or after, and finds it.
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
        "plan_tier": imported.plan_tier,
        "status": imported.status,
        "created_at": created_at,
        "updated_at": now,
        "version": 1,
    }


def _link_rows(imported: ImportedOrganization, now: datetime, due_since: datetime) -> Iterator[dict[str, object]]:
    for provider in PROVIDERS:
        link = new_link(imported.id, provider, now)
        reasons = imported.review_reasons[provider]
        yield link | {
            "customer_id": imported.customer_ids.get(provider),
            "applied_version": link["desired_version"] if imported.status == "deleted" else 0,
            "next_sweep_at": due_since,
            "state": "on_hold" if reasons else "active",
            "error_kind": "import" if reasons else None,
            "error_code": reasons[0].code if reasons else None,
            "error_message": "; ".join(hold.message for hold in reasons) or None,
            "error_at": now if reasons else None,
        }


def _put_owner_on_hold(change: ChangeContext, owner: str, provider: Provider, message: str) -> None:
    """A worker that has its turn at this link loses it: it was started in the belief that the id is right."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == owner, BillingLink.provider == provider)
        .values(
            state="on_hold",
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
    """A value of the file as it may stand in a sentence, which does not let the file decide how long it gets."""
    return repr(value if len(value) <= 60 else f"{value[:60]}…")  # noqa: PLR2004 - what fits on a line
