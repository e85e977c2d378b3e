"""What an operator is told after a change was stored: who applies it, and where the result is shown.

The change and its event are committed by then, and the relay requests the sync within moments. The broker is only
probed: a broker that is away delays the sync and loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.organizations import management
from core.ports.spec import PROVIDER_NAMES, PROVIDERS
from worker.cli import resources
from worker.config.settings import Settings

EMBEDDED_NOTICE = "No broker is configured, so a running `billing-sync up` applies it, within seconds."
BROKER_AWAY_NOTICE = (
    "The broker does not respond. The change is stored: the relay requests the sync, or the sweep does, as soon as the "
    "broker responds."
)
BROKER_REFUSES_NOTICE = (
    "The change is stored, and is synced once it does; `billing-sync doctor` says what to do about the broker."
)


def lines(settings: Settings, *org_ids: str) -> Iterator[str]:
    """``org_ids``: the organizations that are named. Of each that is observed it says that nothing is written."""
    if len(org_ids) == 1:
        yield f"`billing-sync status {org_ids[0]}` shows the result at the providers."
    if org_ids:
        yield from _observed_lines(settings, org_ids)
    if settings.is_embedded:
        yield EMBEDDED_NOTICE
        return
    from worker.wiring import broker_probe

    state = broker_probe.probe(settings)
    if not state.responds:
        yield BROKER_AWAY_NOTICE
    elif state.queue_problems:
        yield f"No worker can use the broker: {state.queue_problems[0].text}. {BROKER_REFUSES_NOTICE}"
    elif state.refusal is not None:
        yield f"The broker accepts no message: {state.refusal}. {BROKER_REFUSES_NOTICE}"


def observed_notice(observed: int, organizations: int) -> str:
    """Of a change of so many organizations, of which ``observed``, at least one, are observed."""
    return (
        f"Observed, so nothing is written at a provider: {observed} of {organizations}. `billing-sync management "
        "report` shows what would be."
    )


def _observed_lines(settings: Settings, org_ids: Sequence[str]) -> Iterator[str]:
    with resources.open_database(settings) as database, database.read() as session:
        for org_id in org_ids:
            organization = session.get_one(Organization, org_id)
            its_links = [session.get_one(BillingLink, (org_id, provider)) for provider in PROVIDERS]
            observed = [
                link
                for link in its_links
                if management.is_link_observed(organization, link, its_links, settings.management)
            ]
            if any(management.removes_marks(organization, link, settings.management) for link in its_links):
                yield "Only our metadata in Stripe is removed; nothing else is written."
            elif len(observed) == 1:
                name = PROVIDER_NAMES["stripe" if observed[0].provider == "stripe" else "lago"]
                yield (
                    f"What is ours of {org_id} is ended. In {name} nothing is written, because its customer is not "
                    f"ours: `billing-sync management report {org_id}` shows whether it still pays."
                )
            elif observed:
                yield (
                    f"{org_id} is observed, so nothing is written at a provider: `billing-sync management report "
                    f"{org_id}` shows what would be{_way_out(organization, its_links)}."
                )


def _way_out(organization: Organization, its_links: Sequence[BillingLink]) -> str:
    if all(link.ownership != "theirs" for link in its_links):
        return f", and `billing-sync management manage {organization.id}` manages it"
    if organization.status == "deleted":
        return ""  # it cannot be adopted; the report says what to end
    return f", and `billing-sync adopt {organization.id}` adopts what is not ours"
