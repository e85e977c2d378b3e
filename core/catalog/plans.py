"""The plan catalog, ``plans.toml``: the only place that defines tiers, their order and their codes at the providers.

A catalog that loads is complete and unambiguous: every tier has its own rank, its own code at each provider, and an
amount in a currency. A plan that is not in it is unknown, and an unknown plan is never free.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

ChargingProvider = Literal["lago", "stripe"]
BillingInterval = Literal["weekly", "monthly", "quarterly", "semiannual", "yearly"]

DEFAULT_PLANS_FILE = Path(__file__).with_name("plans.toml")
WORKING_FOLDER_FILE = Path("plans.toml")
PERIODS_PER_YEAR: dict[BillingInterval, int] = {
    "weekly": 52,
    "monthly": 12,
    "quarterly": 4,
    "semiannual": 2,
    "yearly": 1,
}

# The field of each provider's code, current or, in ``former_codes``, former.
CODE_FIELDS: Final[Mapping[ChargingProvider, str]] = {"lago": "lago_plan_code", "stripe": "stripe_lookup_key"}
USAGE_CODE_FIELD: Final = "lago_usage_plan_code"
_PROBLEM_AT = "problem_at"  # type of an error of ours, whose context names the field
_DEEPEST_KEY = 3  # plans.TIER.FIELD; what is below is written on the line of the field

ProviderPlanCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]


class CatalogError(Exception):
    """The plan file cannot be used. The message names the file, the line, the field and what is expected."""


class UnknownPlanError(LookupError):
    """The tier is not in the catalog. Billing waits for an operator and never falls back to another plan."""


class FormerCodes(BaseModel):
    """Codes under which a plan was sold before. An organization that was sold one keeps it until its tier changes.

    ``lago_usage``: former values of ``lago_usage_plan_code``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lago: list[ProviderPlanCode] = Field(default_factory=list)
    stripe: list[ProviderPlanCode] = Field(default_factory=list)
    lago_usage: list[ProviderPlanCode] = Field(default_factory=list)


class CatalogPlan(BaseModel):
    """One tier. ``amount`` is in the minor unit of ``currency``, for one ``interval``.

    ``offered`` False: it is sold no longer. Organizations that are on it stay on it, and no other one gets it.
    ``lago_usage_plan_code``: its plan in Lago where Stripe charges, which costs nothing (decision 0031).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tier: str
    rank: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=200)
    amount: int = Field(ge=0)
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    interval: BillingInterval
    lago_plan_code: ProviderPlanCode
    lago_usage_plan_code: ProviderPlanCode | None = None
    stripe_lookup_key: ProviderPlanCode
    charged_by: ChargingProvider
    former_codes: FormerCodes = FormerCodes()
    offered: bool = True

    def code(self, provider: ChargingProvider) -> str:
        """The code under which the provider sells it today: in Lago the one of amount 0, if Stripe charges."""
        if provider == "stripe":
            return self.stripe_lookup_key
        return self._today_in_lago[0]

    def former(self, provider: ChargingProvider) -> list[str]:
        """The other codes under which it may have been sold, and stays sold."""
        if provider == "stripe":
            return self.former_codes.stripe
        former_usage = self.former_codes.lago_usage if self.charged_by == "stripe" else []
        return [*self._today_in_lago[1:], *self.former_codes.lago, *former_usage]

    @property
    def has_unpaid_plan(self) -> bool:
        """Whether it is sold in Lago at the amount 0, because Stripe charges."""
        return self.charged_by == "stripe" and self.lago_usage_plan_code is not None

    @property
    def _today_in_lago(self) -> list[str]:
        usage = self.lago_usage_plan_code
        return [self.lago_plan_code] if self.charged_by == "lago" or usage is None else [usage, self.lago_plan_code]

    def may_keep_code(self, provider: ChargingProvider, code: str) -> bool:
        """Whether who was sold this code stays on it. Where Lago charges, nobody stays on a plan of amount 0."""
        return code in (self.code(provider), *self.former(provider))

    def has_code(self, provider: ChargingProvider, code: str) -> bool:
        """Whether it is or was sold under this code, whoever charges."""
        return self.may_keep_code(provider, code) or (provider == "lago" and self.is_usage_code(code))

    def is_usage_code(self, code: str) -> bool:
        """Whether it is, in Lago, a code of amount 0."""
        return code in {self.lago_usage_plan_code, *self.former_codes.lago_usage}

    def yearly_amount_in_lago(self, code: str) -> int:
        return 0 if self.is_usage_code(code) else self.yearly_amount

    @property
    def yearly_amount(self) -> int:
        """What Lago compares to tell an upgrade from a downgrade (lago.md 5.1)."""
        return self.amount * PERIODS_PER_YEAR[self.interval]

    def amount_per(self, interval: BillingInterval) -> int:
        """What it costs for this interval, rounded down."""
        return self.yearly_amount // PERIODS_PER_YEAR[interval]


class EndingPolicy(BaseModel):
    """How our subscription ends when its organization is deleted or moves to the other provider (money.md 12).

    Every option of the provider is sent, so that none of its defaults applies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lago_invoice: Literal["generate", "skip"]
    lago_credit_note: Literal["credit", "refund", "offset", "skip"]
    stripe_invoice_now: bool
    stripe_prorate: bool


class Catalog(BaseModel):
    """The whole file. ``charged_by`` is the default for plans that have none; the value in each plan applies."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # The first field, so that a wrong value is reported at its own line and not at the plans that inherit it.
    charged_by: ChargingProvider | None = None
    ending: EndingPolicy
    plans: dict[str, CatalogPlan] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_duplicates(self) -> Catalog:
        plans = self.plans.values()
        if not any(plan.offered for plan in plans):
            problem = "no plan is offered; remove `offered = false` from one that new organizations may have"
            raise PydanticCustomError(_PROBLEM_AT, problem, {"where": "plans"})
        _refuse_same_values((plan.tier, "rank", plan.rank) for plan in plans)
        for provider in CODE_FIELDS:
            _refuse_same_values((plan.tier, name, code) for plan in plans for name, code in _all_codes(plan, provider))
        return self

    def tiers(self) -> list[str]:
        """All tiers, lowest rank first."""
        return [plan.tier for plan in sorted(self.plans.values(), key=lambda plan: plan.rank)]

    def offered_tiers(self) -> list[str]:
        """Those that a new organization may have, lowest rank first; at least one."""
        return [tier for tier in self.tiers() if self.plans[tier].offered]

    def tiers_above(self, tier: str) -> frozenset[str]:
        return frozenset(each for each in self.tiers() if self.plans[each].rank > self.plan(tier).rank)

    def plan(self, tier: str) -> CatalogPlan:
        try:
            return self.plans[tier]
        except KeyError:
            raise UnknownPlanError(tier) from None

    def tier_of(self, provider: Literal["stripe", "lago"], code: str) -> str | None:
        """The tier that is or was sold under this code at the provider."""
        return next((plan.tier for plan in self.plans.values() if plan.has_code(provider, code)), None)

    def recommendations(self) -> list[str]:
        """What is no problem, and better otherwise: at most one sentence."""
        plans = [self.plans[tier] for tier in self.tiers()]
        unpaid = [
            plan.tier for plan in plans if plan.charged_by == "stripe" and plan.amount and not plan.has_unpaid_plan
        ]
        if not unpaid:
            return []
        sentence = (
            f"Stripe charges for {', '.join(unpaid)}, and Lago makes invoices for the same amounts that nobody pays: "
            "give each a lago_usage_plan_code, as docs/how-to/usage-plans.md says"
        )
        return [sentence]

    def conflicts(self) -> list[str]:
        """Adjacent ranks that Lago would order differently, one sentence for each pair (money.md 7).

        An organization keeps its currency, so plans in different ones are not compared.
        """
        pairs = self._adjacent_plans()
        return [
            f"plans.{high.tier} ranks above plans.{low.tier} but costs less per year "
            f"({high.yearly_amount} < {low.yearly_amount}): Lago would treat the upgrade as a downgrade"
            for low, high in pairs
            if high.yearly_amount < low.yearly_amount
        ] + [
            f"plans.{high.tier} costs the same per year as plans.{low.tier}: Lago would apply the downgrade immediately"
            for low, high in pairs
            if high.yearly_amount == low.yearly_amount
        ]

    def _adjacent_plans(self) -> list[tuple[CatalogPlan, CatalogPlan]]:
        ordered = [self.plans[tier] for tier in self.tiers()]
        currencies = dict.fromkeys(plan.currency for plan in ordered)
        return [
            pair
            for currency in currencies
            for pair in itertools.pairwise(plan for plan in ordered if plan.currency == currency)
        ]


def default_file() -> Path:
    """``plans.toml`` of the working folder, or the packaged one if there is none."""
    return WORKING_FOLDER_FILE if WORKING_FOLDER_FILE.exists() else DEFAULT_PLANS_FILE


def load(path: Path | None = None, charged_by: ChargingProvider | None = None) -> Catalog:
    """Read and check the file. ``charged_by`` replaces the file's own deployment-wide setting.

    Without a path it is ``plans.toml`` of the working folder, or the default catalog of this package if there is none.

    Raises ``CatalogError`` with one sentence.
    """
    path = path or default_file()
    text = _read_text(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: not valid TOML: {error}"
        raise CatalogError(message) from None
    default = charged_by or raw.get("charged_by")
    plans = raw.get("plans")
    if isinstance(plans, dict):
        for tier, table in plans.items():
            if isinstance(table, dict):
                if "tier" in table:
                    raise CatalogError(_tier_key_error(path, text, tier))
                plans[tier] = {"tier": tier, **({"charged_by": default} if default else {}), **table}
    try:
        return Catalog.model_validate(raw)
    except ValidationError as error:
        raise CatalogError(_error_text(path, text, error)) from None


def _read_text(path: Path) -> str:
    """An editor of Windows begins the file with a byte order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        message = f"{path}: plan file not found; set PLANS_FILE to your catalog, or unset it to use the default one"
        raise CatalogError(message) from None
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        message = f"{path}: cannot be read ({error})"
        raise CatalogError(message) from None
    if "\0" in text:  # ASCII in UTF-16 without a byte order mark can be decoded
        message = f"{path}: is not UTF-8 text: save it as UTF-8"
        raise CatalogError(message)
    return text


def _all_codes(plan: CatalogPlan, provider: ChargingProvider) -> list[tuple[str, str]]:
    """The field and the code, of each code that may be listed once only."""
    former = plan.former_codes
    if provider == "stripe":
        fields = [(CODE_FIELDS["stripe"], plan.stripe_lookup_key)]
        return [*fields, *(("former_codes", code) for code in former.stripe)]
    usage = plan.lago_usage_plan_code
    fields = [(CODE_FIELDS["lago"], plan.lago_plan_code), *([(USAGE_CODE_FIELD, usage)] if usage is not None else [])]
    return [*fields, *(("former_codes", code) for code in (*former.lago, *former.lago_usage))]


def _refuse_same_values(values: Iterable[tuple[str, str, object]]) -> None:
    """``values``: the tier, the field and its value."""
    tier_by_value: dict[object, str] = {}
    for tier, field, value in values:
        if value in tier_by_value:
            problem = "{where} is {value}, which plans.{other} already uses"
            parameters = {"where": f"plans.{tier}.{field}", "value": repr(value), "other": tier_by_value[value]}
            raise PydanticCustomError(_PROBLEM_AT, problem, parameters)
        tier_by_value[value] = tier


def _tier_key_error(path: Path, text: str, tier: str) -> str:
    line_number = _line_number(text, ["plans", tier, "tier"])
    return f"{path} line {line_number}: plans.{tier}.tier: the table name already is the tier; remove this line"


def _error_text(path: Path, text: str, error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == _PROBLEM_AT:
        where = first["ctx"]["where"]
        sentence = first["msg"] if first["msg"].startswith(where) else f"{where}: {first['msg']}"
        return f"{path} line {_line_number(text, where.split('.'))}: {sentence}"
    actual = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return f"{path} line {_line_number(text, location)}: {'.'.join(location)}: {first['msg']}{actual}"


def _line_number(text: str, location: list[str]) -> int:
    """The line of the key, or of its table if the key is missing. Python's TOML parser does not report lines."""
    location = location[:_DEEPEST_KEY]
    table = re.escape(".".join(location[:-1]))
    best, inside = 1, len(location) == 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            name = header[1].strip()
            inside = re.fullmatch(table, name) is not None if table else False
            if inside or name == ".".join(location):
                best = number
        elif inside and re.match(rf"\s*{re.escape(location[-1])}\s*[=.]", line):
            return number
    return best
