"""Settings that a test may change while the sandbox runs. An unknown name or a wrong type is an error that names it."""

from dataclasses import asdict, dataclass, field, fields

from sandbox.http import InvalidControlRequestError, JsonDocument


@dataclass(slots=True)
class SandboxSettings:
    limits: bool = True
    """Respond 429 above 25/s for an operation and 100/s in total (Stripe), and above 50/s (Lago)."""
    latency_ms: int = 0
    search_lag_seconds: int = 60
    """By how much Stripe's search is out of date, on the sandbox's clock (stripe.md 2: usually under a minute)."""
    revoked_keys: list[str] = field(default_factory=list)
    restricted_keys: dict[str, list[str]] = field(default_factory=dict)
    """Stripe's restricted keys with their permissions: ``{"rk_test_1": ["rak_customer_write"]}``. Others have all."""
    stripe_account: str = "acct_sandbox"
    lago_organization: str = "1a901a90-1a90-1a90-1a90-1a901a901a90"
    lago_providers: list[str] = field(default_factory=lambda: ["stripe_main"])
    """Codes of the Stripe connections that were created in Lago's UI."""
    lago_currency_locked: bool = False
    """Up to v1.51 a customer with subscriptions has one currency; later versions mix them (lago.md 3.2, 5.1)."""
    stripe_search_refused: bool = False
    """Stripe does not let this merchant search, as in India (stripe.md 2)."""
    lago_writes_to_stripe: bool = True
    """Lago updates the linked Stripe customer at every later upsert (lago.md 3.5)."""
    lago_billing_minute: int = 10
    """Lago's billing job runs hourly at this minute; a period that ended renews or switches in it (lago.md 5.1)."""
    lago_job_delay_seconds: int = 0
    """How long Lago takes to end the subscriptions of a deleted customer."""

    def update(self, changes: JsonDocument) -> None:
        for name, value in changes.items():
            current = getattr(self, name, None)
            if name not in {each.name for each in fields(self)}:
                raise InvalidControlRequestError(name, f"There is no setting {name!r}.")
            if type(value) is not type(current):
                raise InvalidControlRequestError(
                    name, f"Setting {name!r} must be a {type(current).__name__}, not {value!r}."
                )
        _refuse_other_keys(changes.get("restricted_keys", {}))
        for name, value in changes.items():
            setattr(self, name, value)

    def document(self) -> JsonDocument:
        return asdict(self)


def _refuse_other_keys(restricted_keys: JsonDocument) -> None:
    """A name that Stripe does not write so would silently allow nothing."""
    for key, granted in restricted_keys.items():
        if not key.startswith("rk_") or not all(str(each).startswith("rak_") for each in granted):
            message = f"Setting 'restricted_keys' must map keys (rk_…) to lists of permissions (rak_…), not {key!r}."
            raise InvalidControlRequestError("restricted_keys", message)
