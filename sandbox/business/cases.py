"""What customers of a business look like at both providers, one function a case.

A clear case is one that a strong key decides, and whose plan the catalog knows: it is adopted with all its terms. Every
other one is left to an operator, with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandbox.business.seeded import Business, BusinessCustomer, BusinessDraft, subscription_of
from sandbox.client import SandboxClient

MakeCase = Callable[[BusinessDraft, BusinessCustomer], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BusinessCase:
    """``weight``: how often it is drawn."""

    name: str
    weight: int
    is_clear: bool
    make: MakeCase


def create_business(sandbox: SandboxClient, *, count: int, seed: int, database_id: str) -> Business:
    """Create ``count`` customers, and say what is true of each. ``database_id`` is in marks that are ours."""
    draft = BusinessDraft(seed, database_id)
    drawn = draft.random.choices(CASES, weights=[case.weight for case in CASES], k=max(0, count - len(CASES)))
    customers = []
    for number, case in enumerate([*CASES, *drawn][:count]):
        customer = draft.new_customer(number, case.name, is_clear=case.is_clear)
        case.make(draft, customer)
        customers.append(customer)
    draft.create(sandbox)
    return Business(customers=customers, organizations=draft.organizations)


# --- Lago charges


def _lago_with_ids_of_its_own(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter")


def _lago_with_our_ids(draft: BusinessDraft, one: BusinessCustomer) -> None:
    org_id = draft.organization(one, "starter")
    draft.lago_customer(one, org_id, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter", org_id)


def _lago_with_another_subscription_id(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, draft.organization(one, "enterprise"), payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "enterprise")


def _lago_known_to_the_manager(draft: BusinessDraft, one: BusinessCustomer) -> None:
    payer, lago_id = draft.stripe_customer(one), draft.new_lago_id()
    draft.organization(one, "starter", stripe_customer_id=payer, lago_customer_id=lago_id)
    draft.lago_customer(one, payer=payer, lago_id=lago_id)
    draft.lago_subscription(one, "starter")


def _lago_without_payer(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, draft.organization(one, "starter"))
    draft.lago_subscription(one, "starter")


def _lago_at_a_former_price(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, draft.organization(one, "starter"), payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter_2023")


def _lago_at_a_price_of_its_own(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.patch("lago", "subscriptions", draft.lago_subscription(one, "starter"), plan_overrides={"amount_cents": 1700})


def _lago_with_a_coupon(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.applied_coupon(draft.lago_customer(one, payer=draft.stripe_customer(one)), percentage_rate="20.0")
    draft.lago_subscription(one, "enterprise")


def _lago_that_nobody_collects(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    manual = {"payment_method_type": "manual"}
    draft.lago_subscription(one, "enterprise", payment_method=manual)


def _lago_without_subscription(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, draft.organization(one, "starter"), payer=draft.stripe_customer(one))


def _lago_on_another_plan(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, draft.organization(one, "starter"), payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "enterprise")


def _lago_on_an_unknown_plan(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "gold.2019")


def _lago_in_another_currency(draft: BusinessDraft, one: BusinessCustomer) -> None:
    org_id = draft.organization(one, "starter")
    draft.lago_customer(one, org_id, payer=draft.stripe_customer(one), currency="EUR")
    draft.lago_subscription(one, "starter_eur")


def _lago_with_usage(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter_with_calls")


def _lago_id_with_a_dot(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, f"c{one.number}.example", payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter")


def _lago_with_two_subscriptions(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter")
    draft.lago_subscription(one, "enterprise")


def _lago_with_a_scheduled_downgrade(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter", draft.lago_subscription(one, "enterprise"))


def _lago_that_begins_later(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter", subscription_at="2099-01-01T00:00:00Z")


def _lago_with_a_planned_end(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter", ending_at="2099-01-01T00:00:00Z")


def _lago_charges_another_payer(draft: BusinessDraft, one: BusinessCustomer) -> None:
    ours = draft.stripe_customer(one)
    draft.lago_customer(
        one, draft.organization(one, "starter", stripe_customer_id=ours), payer=draft.stripe_customer(one)
    )
    draft.lago_subscription(one, "starter")


def _two_at_lago_charge_one_payer(draft: BusinessDraft, one: BusinessCustomer) -> None:
    payer = draft.stripe_customer(one)
    for name in ("a", "b"):
        draft.lago_customer(one, f"acct-{one.number}-{name}", payer=payer)
        draft.lago_subscription(one, "starter")


def _payer_was_deleted(draft: BusinessDraft, one: BusinessCustomer) -> None:
    payer = draft.stripe_customer(one)
    draft.lago_customer(one, payer=payer)
    draft.lago_subscription(one, "starter")
    draft.delete("stripe", "customers", payer)


# --- Stripe charges


def _stripe_known_to_the_manager(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional")


def _stripe_with_our_marks(draft: BusinessDraft, one: BusinessCustomer) -> None:
    org_id = draft.organization(one, "professional")
    draft.stripe_customer(one, metadata=draft.marks(org_id))
    draft.stripe_subscription(one, "professional", metadata=draft.marks(org_id, plan="professional_monthly_usd"))


def _stripe_alone(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional")


def _stripe_by_invoice(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one, invoice_settings={})
    draft.stripe_subscription(one, "professional", collection_method="send_invoice", days_until_due=14)


def _stripe_with_a_payer_in_lago(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional")


def _stripe_with_a_customer_in_lago(draft: BusinessDraft, one: BusinessCustomer) -> None:
    customer_id, lago_id = draft.stripe_customer(one), draft.new_lago_id()
    draft.organization(one, "professional", stripe_customer_id=customer_id, lago_customer_id=lago_id)
    draft.lago_customer(one, lago_id=lago_id)
    draft.stripe_subscription(one, "professional")


def _stripe_with_the_same_plan_in_lago(draft: BusinessDraft, one: BusinessCustomer) -> None:
    """Lago measures usage there, and charges nobody."""
    _stripe_with_a_customer_in_lago(draft, one)
    draft.lago_subscription(one, "professional")


def _stripe_at_a_former_price(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "former")


def _stripe_with_a_coupon(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional", discounts=[{"coupon": "LOYAL20"}])


def _stripe_with_a_coupon_of_the_customer(draft: BusinessDraft, one: BusinessCustomer) -> None:
    customer_id = draft.stripe_customer(one)
    draft.organization(one, "professional", stripe_customer_id=customer_id)
    draft.stripe_subscription(one, "professional")
    draft.patch("stripe", "customers", customer_id, coupon="LOYAL20")


def _stripe_three_times(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional", quantity=3)


def _stripe_in_a_trial(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional", trial_period_days=30)


def _stripe_at_an_unknown_price(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "own")


def _stripe_in_euro(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "euro")


def _stripe_in_yen(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "yen")


def _stripe_yearly(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "yearly")


def _stripe_with_usage(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "usage")


def _stripe_in_tiers(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "tiered", quantity=12)


def _stripe_with_two_items(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional", "extra")


def _stripe_with_two_subscriptions(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional", stripe_customer_id=draft.stripe_customer(one))
    draft.stripe_subscription(one, "professional")
    draft.stripe_subscription(one, "extra")


def _stripe_with_a_planned_end(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional", cancel_at_period_end=True)


def _stripe_paused(draft: BusinessDraft, one: BusinessCustomer) -> None:
    customer_id = draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional")
    draft.patch("stripe", "subscriptions", subscription_of(customer_id), pause_collection={"behavior": "void"})


def _stripe_with_a_schedule(draft: BusinessDraft, one: BusinessCustomer) -> None:
    customer_id = draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional")
    draft.patch("stripe", "subscriptions", subscription_of(customer_id), schedule=f"sub_sched_{one.number}")


def _stripe_unpaid_so_far(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional", payment_behavior="default_incomplete")


def _stripe_without_subscription(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one)


def _deleted_customer_of_the_manager(draft: BusinessDraft, one: BusinessCustomer) -> None:
    customer_id = draft.stripe_customer(one)
    draft.organization(one, "professional", stripe_customer_id=customer_id)
    draft.delete("stripe", "customers", customer_id)


# --- metadata of the merchant's own, and marks that are not complete


def _right_org_id_of_the_merchant(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one, metadata={"org_id": draft.organization(one, "professional")})
    draft.stripe_subscription(one, "professional")


def _wrong_org_id_of_the_merchant(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.stripe_customer(one, metadata={"org_id": f"tenant-{one.number}"})
    draft.stripe_subscription(one, "professional")


def _org_id_of_somebody_else(draft: BusinessDraft, one: BusinessCustomer) -> None:
    others = [each.id for each in draft.organizations if each.plan_tier == "professional"]
    draft.stripe_customer(one, metadata={"org_id": others[0] if others else draft.new_org_id()})
    draft.stripe_subscription(one, "professional")


def _half_of_our_marks(draft: BusinessDraft, one: BusinessCustomer) -> None:
    org_id = draft.organization(one, "professional")
    draft.stripe_customer(one, metadata={"billing_sync_org_id": org_id})
    draft.stripe_subscription(one, "professional", metadata={"billing_sync_plan": "professional_monthly_usd"})


def _marks_of_another_database(draft: BusinessDraft, one: BusinessCustomer) -> None:
    marks = draft.marks(draft.new_org_id()) | {"billing_sync_database_id": draft.new_lago_id()}
    draft.stripe_customer(one, metadata=marks)
    draft.stripe_subscription(one, "professional", metadata={**marks, "billing_sync_plan": "professional_monthly_usd"})


def _our_marks_twice(draft: BusinessDraft, one: BusinessCustomer) -> None:
    org_id = draft.organization(one, "professional")
    for _ in range(2):
        draft.stripe_customer(one, metadata=draft.marks(org_id))
        draft.stripe_subscription(one, "professional", metadata=draft.marks(org_id, plan="professional_monthly_usd"))


# --- one customer or two


def _same_address_twice(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.organization(one, "professional")
    for _ in range(2):
        draft.stripe_customer(one)
        draft.stripe_subscription(one, "professional")


def _both_charge(draft: BusinessDraft, one: BusinessCustomer) -> None:
    draft.lago_customer(one, payer=draft.stripe_customer(one))
    draft.lago_subscription(one, "starter")
    draft.stripe_subscription(one, "professional")


def _unlinked_at_both(draft: BusinessDraft, one: BusinessCustomer) -> None:
    """Only the name and the address say that they are one."""
    draft.stripe_customer(one)
    draft.stripe_subscription(one, "professional")
    draft.lago_customer(one)


def _case(weight: int, make: MakeCase, *, clear: bool) -> BusinessCase:
    return BusinessCase(name=make.__name__.strip("_").replace("_", " "), weight=weight, is_clear=clear, make=make)


CASES: Final = (
    _case(60, _lago_with_ids_of_its_own, clear=True),
    _case(30, _lago_with_our_ids, clear=True),
    _case(20, _lago_with_another_subscription_id, clear=True),
    _case(20, _lago_known_to_the_manager, clear=True),
    _case(5, _lago_without_payer, clear=True),
    _case(10, _lago_at_a_former_price, clear=True),
    _case(5, _lago_at_a_price_of_its_own, clear=True),
    _case(5, _lago_with_a_coupon, clear=True),
    _case(3, _lago_that_nobody_collects, clear=True),
    _case(3, _lago_without_subscription, clear=True),
    _case(3, _lago_on_another_plan, clear=False),
    _case(3, _lago_on_an_unknown_plan, clear=False),
    _case(3, _lago_in_another_currency, clear=False),
    _case(2, _lago_with_usage, clear=False),
    _case(3, _lago_id_with_a_dot, clear=False),
    _case(2, _lago_with_two_subscriptions, clear=False),
    _case(2, _lago_with_a_scheduled_downgrade, clear=False),
    _case(1, _lago_that_begins_later, clear=False),
    _case(2, _lago_with_a_planned_end, clear=True),
    _case(2, _lago_charges_another_payer, clear=False),
    _case(2, _two_at_lago_charge_one_payer, clear=False),
    _case(2, _payer_was_deleted, clear=False),
    _case(40, _stripe_known_to_the_manager, clear=True),
    _case(15, _stripe_with_our_marks, clear=True),
    _case(40, _stripe_alone, clear=True),
    _case(10, _stripe_by_invoice, clear=True),
    _case(3, _stripe_with_a_payer_in_lago, clear=False),
    _case(15, _stripe_with_a_customer_in_lago, clear=True),
    _case(15, _stripe_with_the_same_plan_in_lago, clear=True),
    _case(10, _stripe_at_a_former_price, clear=True),
    _case(8, _stripe_with_a_coupon, clear=True),
    _case(2, _stripe_with_a_coupon_of_the_customer, clear=True),
    _case(8, _stripe_three_times, clear=True),
    _case(4, _stripe_in_a_trial, clear=True),
    _case(5, _stripe_at_an_unknown_price, clear=False),
    _case(2, _stripe_in_euro, clear=False),
    _case(1, _stripe_in_yen, clear=False),
    _case(2, _stripe_yearly, clear=False),
    _case(2, _stripe_with_usage, clear=False),
    _case(2, _stripe_in_tiers, clear=False),
    _case(2, _stripe_with_two_items, clear=False),
    _case(2, _stripe_with_two_subscriptions, clear=False),
    _case(2, _stripe_with_a_planned_end, clear=True),
    _case(2, _stripe_paused, clear=True),
    _case(1, _stripe_with_a_schedule, clear=True),
    _case(1, _stripe_unpaid_so_far, clear=False),
    _case(3, _stripe_without_subscription, clear=False),
    _case(2, _deleted_customer_of_the_manager, clear=False),
    _case(3, _right_org_id_of_the_merchant, clear=False),
    _case(3, _wrong_org_id_of_the_merchant, clear=True),
    _case(2, _org_id_of_somebody_else, clear=False),
    _case(3, _half_of_our_marks, clear=False),
    _case(2, _marks_of_another_database, clear=False),
    _case(2, _our_marks_twice, clear=False),
    _case(4, _same_address_twice, clear=False),
    _case(3, _both_charge, clear=False),
    _case(3, _unlinked_at_both, clear=False),
)
