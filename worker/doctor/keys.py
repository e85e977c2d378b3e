"""The keys of both providers: whose account, which mode, restricted or not, and whether this database is theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from core.common.clock import utc_now
from core.db.database import DatabaseError
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import OpenBreaker
from core.ports.errors import MisconfiguredError, ParkedError, ProviderError
from core.ports.spec import PROVIDER_NAMES, Account, Provider
from providers.stripe.errors import MISSING_PERMISSION
from providers.stripe.rights import ACCOUNT_RIGHT
from worker.config.settings import Settings, SettingsError
from worker.doctor.findings import DoctorFinding, error, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

KEY_SETTINGS: Final[dict[Provider, str]] = {"stripe": "STRIPE_SECRET_KEY", "lago": "LAGO_API_KEY"}
ADDRESS_SETTINGS: Final[dict[Provider, str]] = {"stripe": "STRIPE_API_BASE", "lago": "LAGO_API_URL"}
NOT_CONFIGURED: Final = "no provider; `billing-sync up` has its own sandbox"


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    if inputs.settings.uses_sandbox:
        names = "STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY, LAGO_API_URL"
        if not inputs.uses_up:
            message = "no provider is configured, and only `billing-sync up` has a sandbox"
            return [error("providers_missing", message, "no worker and no relay starts", f"set {names}")]
        return [not_set("providers_not_set", NOT_CONFIGURED, f"for the real ones set {names}")]
    try:
        with inputs.open_providers() as (stripe, lago):
            fetchers: dict[Provider, Callable[[], Account]] = {
                "stripe": stripe.fetch_account,
                "lago": lago.fetch_account,
            }
            found = [
                finding for provider, fetch in fetchers.items() for finding in _key_findings(inputs, provider, fetch)
            ]
    except (SettingsError, ValueError) as invalid:
        return [error("providers_invalid", str(invalid), "no process starts", "correct it, then `billing-sync doctor`")]
    return [*found, *_breaker_findings(inputs)]


def _key_findings(inputs: DoctorInputs, provider: Provider, fetch: Callable[[], Account]) -> Iterator[DoctorFinding]:
    name = PROVIDER_NAMES[provider]
    try:
        account = fetch()
    except (MisconfiguredError, ParkedError) as rejected:
        yield _rejected_key(provider, rejected)
        return
    except ProviderError as failed:
        consequence = "changes wait until it responds; nothing is lost"
        advice = f"check {ADDRESS_SETTINGS[provider]}, a firewall and {name}'s status page; then `billing-sync doctor`"
        yield error(f"{provider}_unreachable", f"{name}: {failed.message}", consequence, advice)
        return
    pinned = _pinned(inputs, provider)
    if pinned is not None and _is_other(pinned, account):
        yield error(
            f"{provider}_wrong_account",
            f"{name}: the key belongs to {_account_text(account)}, this database to {_pinned_text(pinned)}",
            "no worker starts, and nothing is synced",
            f"set {KEY_SETTINGS[provider]} to a key of {pinned.account_id}, or another database in DATABASE_URL",
        )
        return
    yield from _mode_findings(inputs.settings, provider, account)


def _rejected_key(provider: Provider, rejected: ProviderError) -> DoctorFinding:
    name = PROVIDER_NAMES[provider]
    consequence = f"nothing reaches {name}, for any organization"
    if rejected.code == MISSING_PERMISSION:
        advice = f"grant {ACCOUNT_RIGHT.name} to the key of {KEY_SETTINGS[provider]} in Stripe's dashboard"
        return error("account_right_missing", f"{name}: {rejected.message}", consequence, advice)
    advice = f"set {KEY_SETTINGS[provider]} to a valid key, or correct {ADDRESS_SETTINGS[provider]}"
    return error(f"{provider}_key_rejected", f"{name}: {rejected.message}", consequence, advice)


def _mode_findings(settings: Settings, provider: Provider, account: Account) -> Iterator[DoctorFinding]:
    key = settings.stripe_secret_key.get_secret_value() if settings.stripe_secret_key else ""
    if provider == "stripe" and account.livemode is None and not settings.is_sandbox_key:
        yield warning(
            "stripe_key_form",
            "the form of the Stripe key does not show its mode",
            "a live key cannot be told from a test key",
            "set STRIPE_SECRET_KEY to a key that begins with sk_live_, sk_test_, rk_live_ or rk_test_",
        )
    restricted = ", restricted key" if provider == "stripe" and key.startswith("rk_") else ""
    yield ok(f"{provider}_key", f"{PROVIDER_NAMES[provider]}: {_account_text(account)}{restricted}")


def _account_text(account: Account) -> str:
    mode = {None: "", True: ", live mode", False: ", test mode"}[account.livemode]
    return f"{account.id}{mode}"


def _pinned_text(pinned: ProviderStatus) -> str:
    mode = {None: "", True: ", live mode", False: ", test mode"}[pinned.livemode]
    return f"{pinned.account_id}{mode}"


def _is_other(pinned: ProviderStatus, account: Account) -> bool:
    modes = {mode for mode in (pinned.livemode, account.livemode) if mode is not None}
    return pinned.account_id != account.id or len(modes) > 1


def _pinned(inputs: DoctorInputs, provider: Provider) -> ProviderStatus | None:
    """The account that this database belongs to; ``None`` if none is stored or it cannot be read."""
    try:
        with inputs.open_database() as database, database.read() as session:
            status = session.get(ProviderStatus, provider)
    except (DatabaseError, DBAPIError):
        return None
    return status if status is not None and status.account_id is not None else None


def _breaker_findings(inputs: DoctorInputs) -> Iterator[DoctorFinding]:
    try:
        with inputs.open_database() as database, database.read() as session:
            breakers: dict[Provider, OpenBreaker] = dict(circuit_breaker.open_breakers(session))
    except (DatabaseError, DBAPIError):
        return
    for provider, breaker in breakers.items():
        minutes = int((utc_now() - breaker.open_since).total_seconds() // 60)
        yield error(
            f"{provider}_breaker_open",
            f"{PROVIDER_NAMES[provider]}: its circuit breaker is open for {minutes} min: {breaker.message}",
            "no attempt is made but one probe at a time",
            "correct the cause, then `billing-sync retry --all` probes at once",
        )
