"""The providers' servers: their clocks against ours, and what a version of Lago lacks. No key is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from core.common.clock import utc_now
from providers.transport import deadline
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DOCTOR_CALL_SECONDS, DoctorInputs

MAX_PROVIDER_CLOCK_DIFFERENCE: Final = timedelta(seconds=10)
# Stripe's SDK refuses a webhook that was signed more than 300 s ago (stripe.md 7).
REFUSED_CLOCK_DIFFERENCE: Final = timedelta(seconds=240)
# lago.md 10: before the first, two subscriptions may be created at once; before the second, a taken id is not refused.
LAGO_SAFE_VERSION: Final = (1, 30)
LAGO_CHECKED_VERSION: Final = (1, 48)
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})")


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    if settings.stripe_api_base is None or settings.lago_api_url is None:
        return [not_set("servers_not_set", "no provider")]
    lago = settings.lago_api_url.rstrip("/")
    with deadline.client(DOCTOR_CALL_SECONDS) as http:
        return [
            *_clock_findings(http, "Stripe", f"{settings.stripe_api_base.rstrip('/')}/v1/account"),
            *_clock_findings(http, "Lago", f"{lago}/health"),
            *_version_findings(http, f"{lago}/health"),
        ]


def _clock_findings(http: httpx.Client, name: str, url: str) -> Iterator[DoctorFinding]:
    before = utc_now()
    try:
        header = http.get(url).headers.get("date", "")
        theirs = parsedate_to_datetime(header)
    except (httpx.HTTPError, httpx.InvalidURL):
        yield not_checked("clock_unread", f"{name} did not respond, so its clock cannot be compared")
        return
    except ValueError:
        yield not_checked("clock_unread", f"{name}'s response has no Date, so its clock cannot be compared")
        return
    theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
    difference = _difference(before, utc_now(), theirs)
    if difference <= MAX_PROVIDER_CLOCK_DIFFERENCE:
        yield ok("clock", f"{name}'s clock and ours agree within {MAX_PROVIDER_CLOCK_DIFFERENCE.seconds} s")
        return
    is_refused = difference > REFUSED_CLOCK_DIFFERENCE
    finding = error if is_refused else warning
    consequence = "webhooks are refused as too old, and sign-in tokens as expired" if is_refused else "more is too much"
    message = f"{name}'s clock differs from this machine's by {difference.total_seconds():.0f} s"
    yield finding("provider_clock", message, consequence, "`timedatectl set-ntp true` on this machine")


def _difference(before: datetime, after: datetime, theirs: datetime) -> timedelta:
    """Zero if theirs lies within the request; a Date has whole seconds."""
    if theirs < before:
        return max(timedelta(), before - theirs - timedelta(seconds=1))
    return max(timedelta(), theirs - after)


def _version_findings(http: httpx.Client, url: str) -> Iterator[DoctorFinding]:
    try:
        document = http.get(url).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        document = None
    version = str(document.get("version", "")) if isinstance(document, dict) else ""
    found = _VERSION.match(version)
    if found is None:
        shown = f"Lago's version is {version[:40]!r}, which is not compared" if version else "Lago names no version"
        yield not_checked("lago_version_unknown", shown)
        return
    number = (int(found[1]), int(found[2]))
    upgrade = "upgrade Lago to v1.48 or newer; its releases are at github.com/getlago/lago"
    if number < LAGO_SAFE_VERSION:
        consequence = "two requests at once may create two subscriptions of one organization"
        yield error("lago_version_unsafe", f"Lago is version {found[0]}", consequence, upgrade)
    elif number < LAGO_CHECKED_VERSION:
        consequence = "it does not refuse a subscription id that another customer has"
        yield warning("lago_version_old", f"Lago is version {found[0]}", consequence, upgrade)
    else:
        yield ok("lago_version", f"Lago is version {found[0]}")
