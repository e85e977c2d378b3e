"""Which tiers a plan catalog needs for what two accounts sell. Pure: it reads nothing and writes nothing.

A plan of Lago and a price of Stripe are one tier if their codes say so, or else if they alone cost the same for an
interval. Nothing is guessed beyond that: what the catalog cannot say is left out, with the reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from core.adoption.plans_in_use import PlansInUse, PriceInUse
from core.catalog.plans import PERIODS_PER_YEAR, BillingInterval
from core.ports.spec import PROVIDERS, Provider

MatchedBy = Literal["code", "amount"]
CODE_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
MAX_TIER_NAME_LENGTH: Final = 60
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_INTERVALS: Final[dict[tuple[str | None, int], BillingInterval]] = {
    ("week", 1): "weekly",
    ("month", 1): "monthly",
    ("month", 3): "quarterly",
    ("month", 6): "semiannual",
    ("month", 12): "yearly",
    ("year", 1): "yearly",
}
_NO_CODE: Final = "it has no lookup key"


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """What a price costs."""

    currency: str
    interval: BillingInterval
    amount: int

    @property
    def yearly_amount(self) -> int:
        return self.amount * PERIODS_PER_YEAR[self.interval]


@dataclass(slots=True, kw_only=True)
class ProposedTier:
    """``sold``: what is sold at each provider. ``codes``: those, or new ones where nothing is sold yet.

    ``former``: archived prices of the same product in Stripe. ``former_without_code``: those of them that the catalog
    cannot name. ``same_terms``: how many prices of the other provider cost the same, so none was matched.
    ``same_product``: other tiers under the same name, for the same interval and currency.
    """

    tier: str
    sold: dict[Provider, PriceInUse]
    codes: dict[Provider, str]
    charged_by: Provider
    matched_by: MatchedBy | None = None
    former: list[PriceInUse] = field(default_factory=list)
    former_without_code: list[PriceInUse] = field(default_factory=list)
    same_terms: int = 0
    same_product: list[str] = field(default_factory=list)

    @property
    def charging(self) -> PriceInUse:
        return self.sold[self.charged_by]

    @property
    def terms(self) -> PriceTerms:
        return terms_of(self.charging)

    @property
    def offered(self) -> bool:
        return self.charging.price.active

    @property
    def subscriptions(self) -> int:
        return sum(each.subscriptions for each in (*self.sold.values(), *self.former, *self.former_without_code))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A price that is no tier. ``reasons``: a clause for each."""

    found: PriceInUse
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedCatalog:
    """``tiers``: lowest rank first. ``unused``: on sale, but nobody is on them, and other prices have subscriptions."""

    tiers: list[ProposedTier]
    left_out: list[LeftOut]
    unused: list[PriceInUse]
    several_items: dict[Provider, int]

    @property
    def charged_by(self) -> Provider:
        """Who charges most tiers."""
        counts = Counter(each.charged_by for each in self.tiers)
        return "stripe" if counts["stripe"] > counts["lago"] else "lago"

    @property
    def is_usable(self) -> bool:
        return any(each.offered for each in self.tiers)


def propose(found: PlansInUse) -> ProposedCatalog:
    """Prices that nobody has are tiers only if nobody has any: then the business has not begun."""
    usable, left_out = _divided(found.prices)
    is_sold = any(each.subscriptions for each in found.prices)
    in_use = [each for each in usable if each.subscriptions or (each.price.active and not is_sold)]
    spare = [each for each in usable if not each.subscriptions and each.price.active and is_sold]
    pairs = _Pairs(in_use, spare)
    codes: dict[Provider, set[str]] = {provider: set() for provider in PROVIDERS}
    for each in found.prices:
        codes[each.provider].add(each.price.code or "")
    tiers, of_product = _tiers(pairs, codes)
    left_out += of_product
    used = {_key(each) for tier in tiers for each in tier.sold.values()}
    return ProposedCatalog(
        tiers=_ranked(tiers),
        left_out=left_out,
        unused=[each for each in spare if _key(each) not in used],
        several_items=found.several_items,
    )


def terms_of(found: PriceInUse) -> PriceTerms:
    """Of a price that can be a tier."""
    price = found.price
    if price.amount is None:
        raise ValueError(price.id)
    return PriceTerms(price.currency, _INTERVALS[price.interval, price.interval_count], price.amount)


def _divided(prices: Iterable[PriceInUse]) -> tuple[list[PriceInUse], list[LeftOut]]:
    """What a catalog can say, and what it cannot. A price that nobody has and nobody can buy is neither."""
    usable, left_out = [], []
    codes: set[tuple[Provider, str]] = set()
    for each in prices:
        if not each.subscriptions and not each.price.active:
            continue
        reasons = tuple(dict.fromkeys(_reasons(each)))
        if each.price.code is not None and (each.provider, each.price.code) in codes:
            reasons += ("another price got its lookup key while the prices were listed",)
        if reasons:
            left_out.append(LeftOut(found=each, reasons=reasons))
        else:
            usable.append(each)
            codes.add((each.provider, each.price.code or ""))
    return usable, left_out


def _reasons(found: PriceInUse) -> Iterator[str]:
    price = found.price
    yield from price.unusual
    if price.amount is None and not price.unusual:
        yield "it has no flat amount"
    if price.amount is not None and price.amount < 0:
        yield "its amount is below zero"
    if not _CURRENCY.fullmatch(price.currency):
        yield "its currency is no ISO code"
    if (price.interval, price.interval_count) not in _INTERVALS:
        interval = f"{price.interval_count} {price.interval}s" if price.interval else "an interval that is not known"
        yield f"it is for {interval}, and a plan is for a week, a month, a quarter, half a year or a year"
    if price.code is not None and not CODE_PATTERN.fullmatch(price.code):
        code_name = "lookup key" if found.provider == "stripe" else "code"
        yield f"its {code_name} has other characters than letters, digits, _ and -"


class _Pairs:
    """Which plan of Lago and which price of Stripe are the same. Each is in one pair, and one of the two is in use."""

    def __init__(self, in_use: list[PriceInUse], spare: list[PriceInUse]) -> None:
        self.single: list[PriceInUse] = []
        self.matched: list[tuple[PriceInUse, PriceInUse, MatchedBy]] = []
        self._open = {provider: [each for each in in_use if each.provider == provider] for provider in PROVIDERS}
        self._spare = {provider: [each for each in spare if each.provider == provider] for provider in PROVIDERS}
        self._match_codes(self._open["lago"], self._open["stripe"])
        self._match_codes(self._open["lago"], self._spare["stripe"])
        self._match_codes(self._spare["lago"], self._open["stripe"])
        self._match_terms(self._open["lago"], self._open["stripe"])
        self._match_terms(self._open["lago"], self._spare["stripe"])
        self._match_terms(self._spare["lago"], self._open["stripe"])
        self.single = [each for provider in PROVIDERS for each in self._open[provider]]

    def same_terms(self, found: PriceInUse) -> int:
        """How many unmatched prices of the other provider cost the same."""
        other: Provider = "lago" if found.provider == "stripe" else "stripe"
        rows = [*self._open[other], *self._spare[other]]
        return sum(each.price.active and terms_of(each) == terms_of(found) for each in rows)

    def _match_codes(self, plans: list[PriceInUse], prices: list[PriceInUse]) -> None:
        """``starter`` in Lago is ``starter`` or ``starter_monthly_usd`` in Stripe, for one currency and interval."""
        by_code = {each.price.code: each for each in prices if each.price.code}
        for plan in list(plans):
            for code in (plan.price.id, f"{plan.price.id}{_suffix(terms_of(plan))}"):
                price = by_code.get(code)
                if price is not None and _suffix(terms_of(price)) == _suffix(terms_of(plan)):
                    self._pair(plan, by_code.pop(code), "code")
                    break

    def _match_terms(self, plans: list[PriceInUse], prices: list[PriceInUse]) -> None:
        """Archived prices are none of what is sold today, so their amount proves nothing."""
        plans_by_terms, prices_by_terms = _by_terms(plans), _by_terms(each for each in prices if each.price.active)
        for terms, same in plans_by_terms.items():
            others = prices_by_terms.get(terms, [])
            if len(same) == len(others) == 1:
                self._pair(same[0], others[0], "amount")

    def _pair(self, plan: PriceInUse, price: PriceInUse, matched_by: MatchedBy) -> None:
        self.matched.append((plan, price, matched_by))
        for rows in (*self._open.values(), *self._spare.values()):
            rows[:] = [each for each in rows if each is not plan and each is not price]


def _by_terms(rows: Iterable[PriceInUse]) -> dict[PriceTerms, list[PriceInUse]]:
    by_terms: dict[PriceTerms, list[PriceInUse]] = defaultdict(list)
    for each in rows:
        by_terms[terms_of(each)].append(each)
    return by_terms


def _tiers(pairs: _Pairs, codes: dict[Provider, set[str]]) -> tuple[list[ProposedTier], list[LeftOut]]:
    """Archived prices are joined to the tier of their product, if it is one, or else a tier that is sold no longer."""
    names = _NewNames(codes)
    tiers = [_tier(names, plan, price, matched_by=by) for plan, price, by in pairs.matched]
    on_sale = [each for each in pairs.single if each.price.active]
    tiers += [_tier(names, each, same_terms=pairs.same_terms(each)) for each in on_sale]
    left_out = []
    by_product = _by_product(tiers, "stripe")
    _name_same_products(by_product)
    _name_same_products(_by_product(tiers, "lago"))
    for each in (each for each in pairs.single if not each.price.active):
        products = by_product.get(_product(each), [])
        if len(products) == 1:
            (products[0].former if each.price.code else products[0].former_without_code).append(each)
        elif each.price.code:
            tiers.append(_tier(names, each))
        else:
            left_out.append(LeftOut(found=each, reasons=("it is archived", _NO_CODE)))
    return tiers, left_out


def _name_same_products(by_product: dict[tuple[str, str, str], list[ProposedTier]]) -> None:
    for tiers in by_product.values():
        for tier in tiers:
            others = [each.tier for each in tiers if each is not tier and each.tier not in tier.same_product]
            tier.same_product += others


def _by_product(tiers: Iterable[ProposedTier], provider: Provider) -> dict[tuple[str, str, str], list[ProposedTier]]:
    """Of prices that are on sale."""
    by_product: dict[tuple[str, str, str], list[ProposedTier]] = defaultdict(list)
    for tier in tiers:
        price = tier.sold.get(provider)
        if price is not None and price.price.active and price.price.name:
            by_product[_product(price)].append(tier)
    return by_product


def _product(found: PriceInUse) -> tuple[str, str, str]:
    terms = terms_of(found)
    return found.price.name, terms.currency, terms.interval


def _tier(
    names: _NewNames,
    *found: PriceInUse,
    matched_by: MatchedBy | None = None,
    same_terms: int = 0,
) -> ProposedTier:
    sold = {each.provider: each for each in found}
    charged_by = _charging_provider(sold)
    suffix = _suffix(terms_of(sold[charged_by]))
    tier = names.new_tier(_base_name(sold, charged_by), suffix)
    own_codes = {provider: each.price.code for provider, each in sold.items()}
    new_codes: dict[Provider, str] = {"lago": tier, "stripe": f"{tier.removesuffix(suffix)}{suffix}"}
    return ProposedTier(
        tier=tier,
        sold=sold,
        codes={each: own_codes.get(each) or names.new_code(each, new_codes[each]) for each in PROVIDERS},
        charged_by=charged_by,
        matched_by=matched_by,
        same_terms=same_terms,
    )


def _charging_provider(sold: dict[Provider, PriceInUse]) -> Provider:
    """Where most are charged. Lago without a payer charges nobody, so it counts only if nobody is charged at Stripe."""
    if len(sold) == 1:
        return next(iter(sold))
    stripe, lago = sold["stripe"].charged, sold["lago"].charged
    return "stripe" if stripe > lago else "lago"


def _base_name(sold: dict[Provider, PriceInUse], charged_by: Provider) -> str:
    """After Lago's code, or else the lookup key, or else the name of the product."""
    plan, price = sold.get("lago"), sold.get("stripe")
    code = plan.price.code if plan is not None else price.price.code if price is not None else None
    suffix = _suffix(terms_of(sold[charged_by]))
    return _slug((code or "").removesuffix(suffix)) or _slug(sold[charged_by].price.name) or "plan"


class _NewNames:
    """Names of tiers and codes that nothing has yet. ``codes``: what each provider has."""

    def __init__(self, codes: dict[Provider, set[str]]) -> None:
        self._codes = codes
        self._tiers: set[str] = set()

    def new_tier(self, base: str, suffix: str) -> str:
        return _add_free(self._tiers, base, f"{base}{suffix}")

    def new_code(self, provider: Provider, code: str) -> str:
        return _add_free(self._codes[provider], code)


def _add_free(taken: set[str], *names: str) -> str:
    numbered = (f"{names[-1]}_{number}" for number in range(2, len(taken) + 3))
    name = next(each for each in (*names, *numbered) if each not in taken)
    taken.add(name)
    return name


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:MAX_TIER_NAME_LENGTH].strip("_")


def _suffix(terms: PriceTerms) -> str:
    return f"_{terms.interval}_{terms.currency.lower()}"


def _ranked(tiers: list[ProposedTier]) -> list[ProposedTier]:
    """By what a year costs. The currency that most subscriptions pay in is first: its lowest plan is for new users."""
    paid_in = Counter[str]()
    for tier in tiers:
        paid_in[tier.terms.currency] += tier.subscriptions
    return sorted(
        tiers,
        key=lambda tier: (
            -paid_in[tier.terms.currency],
            tier.terms.currency,
            tier.terms.yearly_amount,
            tier.offered,
            tier.tier,
        ),
    )


def _key(found: PriceInUse) -> tuple[Provider, str]:
    return found.provider, found.price.id
