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
from core.db.database import one_at_a_time
from core.db.models.billing_links import BillingLink
from core.db.models.events import EventData
from core.db.models.organizations import STATUSES, Organization
from core.events.event_types import Change
from core.inbox.service_events import about
from core.organizations.links import new_link
from core.organizations.validation import ID_PATTERN, NAME_LIMIT, name_key
from core.ports.spec import PROVIDERS, Provider
from core.predecessor.files import Finding, OldOrganization, read_organizations
from core.predecessor.published_events import record_published
from core.predecessor.report import Chunk

ID_LIMIT: Final = 255
PLAN_LIMIT: Final = 200
FIELD_OF: Final[dict[Provider, str]] = {"stripe": "stripe_customer_id", "lago": "lago_customer_id"}

CustomerId = tuple[Provider, str]


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a link waits for a person; the sentence says what that person can do."""

    code: str
    sentence: str


@dataclass(slots=True)
class Wanted:
    """What one record of the file becomes, were it not here yet."""

    old: OldOrganization
    name: str
    name_key: str
    plan_tier: str
    status: str
    customer_ids: dict[Provider, str]
    holds: dict[Provider, list[Hold]] = field(default_factory=lambda: {provider: [] for provider in PROVIDERS})
    findings: list[Finding] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.old.id

    def repair(self, reason: str) -> None:
        self.findings.append(Finding("repair", reason, self.old.place, self.id))

    def lose(self, reason: str) -> None:
        self.findings.append(Finding("loss", reason, self.old.place, self.id))

    def hold(self, code: str, sentence: str, providers: Iterable[Provider] = PROVIDERS) -> None:
        for provider in providers:
            self.holds[provider].append(Hold(code, sentence))


@dataclass(slots=True)
class Here:
    """What the database holds of those in this part, and who has their names and billing ids."""

    organizations: dict[str, Row[str, str, str, str, datetime]]
    customer_ids: dict[tuple[str, str], str | None]
    owners: dict[tuple[str, str], str]
    names: dict[str, str]


class OrganizationImport:
    """``in_doubt``: billing ids that stand more than once in the file.

    All of it is due since ``began``, so that a change from the midst of a long import came due after every part of it.
    """

    def __init__(self, catalog: Catalog, in_doubt: frozenset[CustomerId], began: datetime) -> None:
        self._catalog = catalog
        self._in_doubt = in_doubt
        self._began = began

    def run(self, change: Change, olds: list[OldOrganization]) -> Chunk:
        chunk = Chunk()
        wanted = [self._wanted(old) for old in olds if _is_usable(old, chunk)]
        here = _here(change, wanted)
        new: list[Wanted] = []
        contested: dict[tuple[str, Provider], tuple[str, str]] = {}
        for each in wanted:
            _share_name(each, here)
            if each.id in here.organizations:
                _compare(each, here, chunk)
            else:
                contested |= self._claim_ids(each, here)
                new.append(each)
            chunk.findings += each.findings
        if new:
            _insert(change, new, self._began)
        for (owner, provider), (customer_id, claimant) in contested.items():
            sentence = _twice(owner, provider, customer_id, claimant, _if_it_is_right(owner))
            _hold_owner(change, owner, provider, sentence)
        chunk.counted.new = len(new)
        chunk.counted.unchanged = len(wanted) - len(new)
        return chunk

    def _wanted(self, old: OldOrganization) -> Wanted:
        name = old.name[:NAME_LIMIT] if old.name.strip() else old.id
        wanted = Wanted(old, name, name_key(name), old.plan_tier[:PLAN_LIMIT], old.status, _customer_ids(old))
        if not old.name.strip():
            wanted.repair("its id stands in the place of the empty name; billing waits until it has one")
            wanted.hold(
                "empty_name", f"the old store held no name for it: rename it, then `billing-sync retry {old.id}`"
            )
        elif name != old.name:
            wanted.repair(f"only the first {NAME_LIMIT} characters of the name were kept")
        if old.created_at is None:
            wanted.repair("the time of the import stands for created_at")
        if old.status not in STATUSES:
            wanted.status = "suspended"
            wanted.repair(
                f"the unknown status {_short(old.status)} was read as suspended; billing waits for a decision"
            )
            wanted.hold(
                "unknown_status",
                f"the old store held the unknown status {_short(old.status)}: set its status to one of "
                f"{', '.join(STATUSES)}, then `billing-sync retry {old.id}`",
            )
        self._judge_plan(wanted)
        return wanted

    def _judge_plan(self, wanted: Wanted) -> None:
        plan = wanted.old.plan_tier
        if len(plan) > PLAN_LIMIT:
            wanted.lose(f"plan_tier is {len(plan)} characters long: only the first {PLAN_LIMIT} were kept")
        if plan in self._catalog.plans:
            return
        kept = f"the unknown plan {_short(plan)} was kept as written"
        if wanted.status == "deleted":
            wanted.repair(kept)
        else:
            wanted.repair(f"{kept}; billing waits until it gets a plan of the catalog")

    def _claim_ids(self, wanted: Wanted, here: Here) -> dict[tuple[str, Provider], tuple[str, str]]:
        """Take the ids that are free; returns the links that lose their claim's certainty to this organization."""
        contested: dict[tuple[str, Provider], tuple[str, str]] = {}
        for provider, customer_id in list(wanted.customer_ids.items()):
            if len(customer_id) <= ID_LIMIT:
                here.owners.setdefault((provider, customer_id), wanted.id)
            loss = _why_lost(wanted.id, provider, customer_id, here)
            owner = here.owners.get((provider, customer_id), wanted.id)
            if loss is not None:
                wanted.lose(loss)
                del wanted.customer_ids[provider]
            if owner != wanted.id:
                contested[owner, provider] = customer_id, wanted.id
                sentence = _twice(wanted.id, provider, customer_id, owner, _if_it_has_one(wanted.id))
                wanted.hold("billing_id_twice", sentence, [provider])
            elif loss is not None:
                wanted.hold("billing_id_lost", f"{loss}: {_if_it_has_one(wanted.id)}", [provider])
            elif (provider, customer_id) in self._in_doubt:
                other = "another organization of the imported file"
                sentence = _twice(wanted.id, provider, customer_id, other, _if_it_is_right(wanted.id))
                wanted.hold("billing_id_twice", sentence, [provider])
        return contested


def ids_in_doubt(path: Path) -> frozenset[CustomerId]:
    """Billing ids that more than one organization of the file carries."""
    seen: set[int] = set()
    twice: set[CustomerId] = set()
    for item in read_organizations(path):
        if isinstance(item, OldOrganization):
            for customer in _customer_ids(item).items():
                mark = hash(customer)
                if mark in seen:
                    twice.add(customer)
                seen.add(mark)
    return frozenset(twice)


def _customer_ids(old: OldOrganization) -> dict[Provider, str]:
    ids: dict[Provider, str | None] = {"stripe": old.stripe_customer_id, "lago": old.lago_customer_id}
    return {provider: customer_id for provider, customer_id in ids.items() if customer_id is not None}


def _is_usable(old: OldOrganization, chunk: Chunk) -> bool:
    if ID_PATTERN.fullmatch(old.id):
        return True
    reason = "no usable record: its id has more than 60 characters behind 'org_'"
    chunk.findings.append(Finding("loss", reason, old.place, old.id))
    chunk.counted.refused += 1
    return False


def _here(change: Change, wanted: list[Wanted]) -> Here:
    session = change.session
    ids = [each.id for each in wanted]
    claimed = {customer_id for each in wanted for customer_id in each.customer_ids.values()}
    rows = session.execute(
        select(
            Organization.id, Organization.name, Organization.plan_tier, Organization.status, Organization.created_at
        ).where(Organization.id.in_(ids))
    ).all()
    links = select(BillingLink.org_id, BillingLink.provider, BillingLink.customer_id)
    ours = session.execute(links.where(BillingLink.org_id.in_([row.id for row in rows])))
    theirs = session.execute(links.where(BillingLink.provider.in_(PROVIDERS), BillingLink.customer_id.in_(claimed)))
    names = session.execute(
        select(Organization.name_key, Organization.id).where(
            Organization.name_key.in_({each.name_key for each in wanted}), Organization.status != "deleted"
        )
    )
    return Here(
        {row.id: row for row in rows},
        {(org_id, provider): customer_id for org_id, provider, customer_id in ours},
        {(provider, customer_id): org_id for org_id, provider, customer_id in theirs if customer_id is not None},
        {row.name_key: row.id for row in names},
    )


def _share_name(wanted: Wanted, here: Here) -> None:
    """Two live organizations of one name: the second is found under a key that no name can have."""
    ours = here.organizations.get(wanted.id)
    if wanted.status == "deleted" or (ours is not None and (ours.name != wanted.name or ours.status == "deleted")):
        return
    owner = here.names.setdefault(wanted.name_key, wanted.id)
    if owner != wanted.id:
        wanted.repair(f"its name is that of {owner} as well: both were kept under it, {owner} and {wanted.id}")
        # name_key() strips, so no name that anybody may choose has a key that ends in a blank.
        wanted.name_key = f"{wanted.name_key} {wanted.id} "


def _compare(wanted: Wanted, here: Here, chunk: Chunk) -> None:
    """It is here already and stays as it is; what people have changed since is named."""
    ours = here.organizations[wanted.id]
    differs = [name for name in ("name", "plan_tier", "status") if getattr(ours, name) != getattr(wanted, name)]
    if wanted.old.created_at not in {None, ours.created_at}:
        differs.append("created_at")
    for provider, customer_id in wanted.customer_ids.items():
        has = here.customer_ids.get((wanted.id, provider))
        loss = _why_lost(wanted.id, provider, customer_id, here)
        if has is None and loss is not None:
            wanted.lose(loss)  # nobody has decided since the import that brought it
        elif has != customer_id:
            differs.append(FIELD_OF[provider])
    if differs:
        reason = f"kept ours: {', '.join(differs)} changed here since"
        chunk.kept_ours.append(Finding("repair", reason, wanted.old.place, wanted.id))


def _why_lost(org_id: str, provider: Provider, customer_id: str, here: Here) -> str | None:
    name = FIELD_OF[provider]
    if len(customer_id) > ID_LIMIT:
        return f"{name} is {len(customer_id)} characters long, more than {ID_LIMIT}: left out, billing waits"
    owner = here.owners.get((provider, customer_id), org_id)
    if owner == org_id:
        return None
    return (
        f"{name} {_short(customer_id)} stands on {owner} as well: {owner} keeps it and {org_id} gets none; "
        "billing of both waits for a decision"
    )


def _twice(org_id: str, provider: Provider, customer_id: str, other: str, way_out: str) -> str:
    return f"{FIELD_OF[provider]} {_short(customer_id)} stands on {other} as well as on {org_id}: {way_out}"


def _if_it_is_right(org_id: str) -> str:
    return f"if it is {org_id}'s, `billing-sync retry {org_id}`; if not, give it another with `billing-sync ids`"


def _if_it_has_one(org_id: str) -> str:
    return (
        f"give it its own with `billing-sync ids`, or if it has none, `billing-sync retry {org_id}` "
        "makes a new customer"
    )


def _insert(change: Change, new: list[Wanted], due_since: datetime) -> None:
    # A message about one of them is judged either before, and waits to be taken, or after, and finds it.
    one_at_a_time(change.session, *(about(each.id) for each in new))
    connection = change.session.connection()
    connection.execute(insert(Organization), [_organization_row(each, change.now) for each in new])
    connection.execute(insert(BillingLink), [row for each in new for row in _link_rows(each, change.now, due_since)])
    facts: Iterator[tuple[str, EventData]] = ((each.id, {"plan_tier": each.plan_tier}) for each in new)
    record_published(change, "organization.created", facts)


def _organization_row(wanted: Wanted, now: datetime) -> dict[str, object]:
    created_at = wanted.old.created_at or now
    return {
        "id": wanted.id,
        "name": wanted.name,
        "name_key": wanted.name_key,
        "plan_tier": wanted.plan_tier,
        "status": wanted.status,
        "created_at": created_at,
        "updated_at": now,
        "billing_version": 1,
    }


def _link_rows(wanted: Wanted, now: datetime, due_since: datetime) -> Iterator[dict[str, object]]:
    for provider in PROVIDERS:
        link = new_link(wanted.id, provider, now)
        holds = wanted.holds[provider]
        yield link | {
            "customer_id": wanted.customer_ids.get(provider),
            "applied_version": link["wanted_version"] if wanted.status == "deleted" else 0,
            "sweep_at": due_since,
            "state": "held" if holds else "open",
            "error_kind": "import" if holds else None,
            "error_code": holds[0].code if holds else None,
            "error_message": "; ".join(hold.sentence for hold in holds) or None,
            "error_at": now if holds else None,
        }


def _hold_owner(change: Change, owner: str, provider: Provider, sentence: str) -> None:
    """A worker that has its turn at this link loses it: it was started in the belief that the id is right."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == owner, BillingLink.provider == provider)
        .values(
            state="held",
            generation=BillingLink.generation + 1,
            error_kind="import",
            error_code="billing_id_twice",
            error_message=sentence,
            error_request_id=None,
            error_at=change.now,
        )
        .execution_options(synchronize_session=False)
    )


def _short(value: str) -> str:
    """A value of the file as it may stand in a sentence, which does not let the file decide how long it gets."""
    return repr(value if len(value) <= 60 else f"{value[:60]}…")  # noqa: PLR2004 - what fits on a line
