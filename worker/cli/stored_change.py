"""What an operator is told after a change was stored: who applies it, and where the result is shown.

The change and its event are committed by then, and the relay requests the sync within moments. The broker is only
probed: a broker that is away delays the sync and loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from worker.config.settings import Settings

EMBEDDED_NOTICE = "No broker is configured, so a running `billing-sync up` applies it, within seconds."
BROKER_AWAY_NOTICE = (
    "The broker does not respond. The change is stored: the relay requests the sync, or the sweep does, as soon as the "
    "broker responds."
)
BROKER_REFUSES_NOTICE = (
    "The change is stored, and is synced once it does; `billing-sync doctor` says what to do about the broker."
)


OBSERVED_NOTICE = (
    "MANAGEMENT is observe, so nothing is written at a provider: `billing-sync management report` shows what would be, "
    "and `billing-sync management manage ORG` manages one organization."
)


def lines(settings: Settings, org_id: str | None = None) -> Iterator[str]:
    """``org_id``: the organization, if it is one."""
    if org_id is not None:
        yield f"`billing-sync status {org_id}` shows the result at the providers."
    if settings.management == "observe":
        yield OBSERVED_NOTICE
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
