"""The providers' webhooks to us: an endpoint is registered, enabled, gets what we act on, and the API accepts it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.exc import DBAPIError

from api.routes.provider_webhooks import LAGO_WEBHOOK_PATH, LEGACY_WEBHOOK_PATHS, STRIPE_WEBHOOK_PATH
from core.db.database import DatabaseError
from core.db.models.providers import ProviderStatus
from core.ports.errors import ProviderError
from core.ports.registered_endpoints import RegisteredEndpoint
from core.ports.spec import PROVIDER_NAMES, Provider
from providers.lago.webhooks import LAGO_WEBHOOK_EFFECTS
from providers.stripe.webhooks import STRIPE_WEBHOOK_EFFECTS
from worker.config.settings import Settings, SettingsError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

UNHEARD: Final = "failed payments and changes in the dashboard are seen late: in Stripe by minutes, in Lago by hours"
MAX_NAMED_EVENTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Webhooks:
    """What one provider must send to us. ``has_secret``: our API accepts its webhooks."""

    provider: Provider
    path: str
    needed: Collection[str]
    secret_setting: str
    has_secret: bool
    public_url: str | None

    @property
    def url(self) -> str:
        """The address that the provider must be given."""
        return f"{(self.public_url or 'https://YOUR-API').rstrip('/')}{self.path}"

    def is_ours(self, endpoint: RegisteredEndpoint) -> bool:
        """By the whole address if we know our own, else by its path."""
        paths = (self.path, *LEGACY_WEBHOOK_PATHS[self.path])
        if self.public_url is not None:
            return endpoint.url in {f"{self.public_url.rstrip('/')}{path}" for path in paths}
        return urlsplit(endpoint.url).path in paths


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    settings = inputs.settings
    if settings.uses_sandbox:
        return [not_set("webhooks_not_set", "no provider")]
    stripe_webhooks, lago_webhooks = _expected(inputs)
    try:
        with inputs.open_providers() as (stripe, lago):
            found = [
                *_findings(stripe_webhooks, stripe.webhook_endpoints, _signature(inputs)),
                *_findings(lago_webhooks, lago.webhook_endpoints, _signature(inputs)),
            ]
    except (SettingsError, ValueError):
        found = [not_checked("webhooks_unread", "the settings of a provider are not valid")]
    return [*found, *_refused(inputs, stripe_webhooks, lago_webhooks)]


def _refused(inputs: DoctorInputs, *expected: _Webhooks) -> Iterator[DoctorFinding]:
    """What the API stored of webhooks that it refused: its own settings may be other ones than ours."""
    try:
        with inputs.open_database() as database, database.read() as session:
            rows = {each.provider: session.get_one(ProviderStatus, each.provider) for each in expected}
    except (DatabaseError, DBAPIError):
        return
    for each in expected:
        since = rows[each.provider].webhooks_refused_since
        if since is not None:
            name = PROVIDER_NAMES[each.provider]
            yield error(
                f"{each.provider}_webhooks_refused",
                f"{name}: the API refuses its webhooks since {since:%Y-%m-%d %H:%M} UTC: the signature is not valid",
                UNHEARD,
                f"set {each.secret_setting} for the API to the secret of the endpoint in {name}, and restart the API; "
                "this finding ends with the next webhook that is accepted",
            )


def _expected(inputs: DoctorInputs) -> tuple[_Webhooks, _Webhooks]:
    settings, api = inputs.settings, inputs.api_settings
    public_url = api.api_public_url if api is not None else None
    stripe = _Webhooks(
        provider="stripe",
        path=STRIPE_WEBHOOK_PATH,
        needed=STRIPE_WEBHOOK_EFFECTS,
        secret_setting="STRIPE_WEBHOOK_SECRET",  # noqa: S106 - the setting's name
        has_secret=settings.stripe_webhook_secret is not None,
        public_url=public_url,
    )
    lago = _Webhooks(
        provider="lago",
        path=LAGO_WEBHOOK_PATH,
        needed=LAGO_WEBHOOK_EFFECTS,
        secret_setting="LAGO_WEBHOOK_SECRET",  # noqa: S106 - the setting's name
        has_secret=_lago_has_secret(settings, inputs),
        public_url=public_url,
    )
    return stripe, lago


def _lago_has_secret(settings: Settings, inputs: DoctorInputs) -> bool:
    api = inputs.api_settings
    return settings.lago_webhook_secret is not None or (api is not None and api.lago_webhook_public_key is not None)


def _signature(inputs: DoctorInputs) -> str:
    return inputs.api_settings.lago_webhook_algorithm if inputs.api_settings is not None else "hmac"


def _findings(
    webhooks: _Webhooks, list_endpoints: Callable[[], list[RegisteredEndpoint]], signature: str
) -> Iterator[DoctorFinding]:
    provider, name = webhooks.provider, PROVIDER_NAMES[webhooks.provider]
    try:
        ours = [each for each in list_endpoints() if webhooks.is_ours(each)]
    except ProviderError as failed:
        message = f"{name}: its webhook endpoints cannot be listed: {failed.message}"
        yield not_checked(f"{provider}_webhooks_unread", message)
        return
    if not ours and not webhooks.has_secret:
        advice = f"register {webhooks.url} at {name}, and set {webhooks.secret_setting}"
        yield not_set(f"{provider}_webhooks_not_set", f"{name}: no endpoint and no secret; {UNHEARD}", advice)
    elif not ours:
        message = f"{name}: no endpoint of ours is registered"
        advice = f"register {webhooks.url} in {name}'s dashboard"
        yield error(f"{provider}_webhook_missing", message, UNHEARD, advice)
    elif not webhooks.has_secret:
        message = f"{name}: {_host(ours[0])} is registered, and {webhooks.secret_setting} is not set"
        advice = f"set {webhooks.secret_setting} for the API to the secret that {name} shows"
        yield error(f"{provider}_webhook_secret_missing", message, "the API answers each of them with 404", advice)
    else:
        yield from _endpoint_findings(webhooks, ours, signature)


def _endpoint_findings(webhooks: _Webhooks, ours: list[RegisteredEndpoint], signature: str) -> Iterator[DoctorFinding]:
    provider, name = webhooks.provider, PROVIDER_NAMES[webhooks.provider]
    enabled = [each for each in ours if each.is_enabled]
    if not enabled:
        advice = f"enable {_host(ours[0])} in {name}'s dashboard"
        yield error(f"{provider}_webhook_disabled", f"{name}: the endpoint is disabled", UNHEARD, advice)
        return
    missing = set.intersection(*(set(each.missing(webhooks.needed)) for each in enabled))
    if missing:
        shown = ", ".join(sorted(missing)[:MAX_NAMED_EVENTS])
        more = f" and {len(missing) - MAX_NAMED_EVENTS} more" if len(missing) > MAX_NAMED_EVENTS else ""
        message = f"{name}: the endpoint does not get {shown}{more}"
        advice = f"add them to {_host(enabled[0])} in {name}'s dashboard, or choose all events"
        yield warning(f"{provider}_webhook_events", message, UNHEARD, advice)
    if provider == "lago" and all(each.signature != signature for each in enabled):
        message = f"Lago signs by {enabled[0].signature}, and LAGO_WEBHOOK_ALGORITHM is {signature}"
        advice = f"set LAGO_WEBHOOK_ALGORITHM={enabled[0].signature}, or change the endpoint in Lago"
        yield error("lago_webhook_signature", message, "each of them is refused with 401", advice)
    elif not missing:
        yield ok(f"{provider}_webhooks", f"{name}: {_host(enabled[0])} gets each event that we need")


def _host(endpoint: RegisteredEndpoint) -> str:
    """The address without a user, a password or a query."""
    parts = urlsplit(endpoint.url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
