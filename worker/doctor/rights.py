"""What a restricted Stripe key may not do: by one read for each right, and by what Stripe refused before.

A right to write is not tried, because only a write could show it. What Stripe refused is stored with the parked links.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from core.db.database import DatabaseError
from core.db.models.billing_links import BillingLink
from core.ports.errors import ProviderError
from providers.stripe import rights
from providers.stripe.errors import MISSING_PERMISSION
from providers.stripe.rights import MissingRight
from worker.config.settings import SettingsError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok
from worker.doctor.inputs import DoctorInputs


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    key = settings.stripe_secret_key.get_secret_value() if settings.stripe_secret_key else ""
    if settings.uses_sandbox:
        return [not_set("rights_not_set", "no provider")]
    if not key.startswith("rk_"):
        return [ok("rights_of_secret_key", "the Stripe key is not restricted")]
    try:
        with inputs.open_providers() as (stripe, _):
            found = [_finding(each) for each in stripe.missing_rights()]
    except ProviderError as failed:
        found = [not_checked("rights_unread", f"the rights of the Stripe key cannot be checked: {failed.message}")]
    except (SettingsError, ValueError):
        found = [not_checked("rights_unread", "the settings of a provider are not valid")]
    found += _refused_before(inputs)
    return found or [ok("rights", "the Stripe key may read all that is needed; whether it may write is not tried")]


def _finding(missing: MissingRight) -> DoctorFinding:
    right = missing.right
    message = f"the Stripe key lacks the right {right.name} ({missing.named})"
    if right.affects == "nothing":
        return not_set("right_not_granted", f"{message}, without which the work goes on: {right.consequence}")
    advice = (
        f"grant {right.name} to the key of STRIPE_SECRET_KEY in Stripe's dashboard, then "
        f"`billing-sync retry --error {MISSING_PERMISSION}`"
    )
    return error("right_missing", message, right.consequence, advice)


def _refused_before(inputs: DoctorInputs) -> Iterator[DoctorFinding]:
    """The rights that parked links name. They may have been granted since: a retry shows it."""
    try:
        with inputs.open_database() as database, database.read() as session:
            messages = session.scalars(
                select(BillingLink.error_message)
                .where(
                    BillingLink.provider == "stripe",
                    BillingLink.state == "parked",
                    BillingLink.error_code == MISSING_PERMISSION,
                )
                .distinct()
            ).all()
    except (DatabaseError, DBAPIError):
        return
    for named in sorted({name for message in messages if (name := rights.named_right(message or "")) is not None}):
        yield error(
            "right_refused",
            f"Stripe refused a request because the key lacks {named}",
            "nothing is sent to Stripe for the organizations that it parked",
            f"grant it to the key of STRIPE_SECRET_KEY in Stripe's dashboard, then "
            f"`billing-sync retry --error {MISSING_PERMISSION}`",
        )
