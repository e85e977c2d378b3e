"""Somebody at the dashboards: makes, changes and deletes objects behind our back, by the billers' own rules.

None of it is in the call log, under the limits or under a fault; Stripe's events name no request as the cause.
"""

from collections.abc import Callable

from sandbox.http import Doc, WrongRequestError
from sandbox.lago_api.provider import Lago
from sandbox.lago_api.serializers import Query
from sandbox.stripe_api.provider import Stripe

MOST_AT_ONCE = 10_000


class Hand:
    def __init__(self, stripe: Stripe, lago: Lago) -> None:
        self._stripe = stripe
        self._lago = lago
        self._make: dict[str, Callable[[Doc], Doc]] = {
            "stripe customers": self._stripe_customer,
            "stripe subscriptions": self._stripe_subscription,
            "stripe products": lambda wanted: stripe.catalog.create_product(form(wanted)),
            "stripe prices": lambda wanted: stripe.catalog.create_price(form(wanted)),
            "stripe invoices": stripe.payments.make,
            "lago invoices": lago.invoices.make,
            "lago payer_errors": lago.invoices.refuse_payer,
            "lago payers": lago.invoices.take_payer,
            "lago customers": self._lago_customer,
            "lago subscriptions": lambda wanted: dict(lago.subscriptions.post(wanted, lago.customers)["subscription"]),
            "lago plans": lambda wanted: dict(lago.plans.create(wanted)["plan"]),
        }
        self._patch: dict[str, Callable[[str, Doc], Doc]] = {
            "stripe customers": lambda key, wanted: stripe.customers.update(key, form(wanted)),
            "stripe subscriptions": lambda key, wanted: stripe.subscriptions.update(key, form(wanted)),
            "stripe products": lambda key, wanted: stripe.catalog.update_product(key, form(wanted)),
            "stripe prices": lambda key, wanted: stripe.catalog.update_price(key, form(wanted)),
            "stripe invoices": stripe.payments.patch,
            "lago invoices": lago.invoices.patch,
            "lago customers": lambda key, wanted: lago.customers.upsert({**wanted, "external_id": key}),
            "lago subscriptions": self._patch_lago_subscription,
            "lago plans": lago.plans.update,
        }
        self._delete: dict[str, Callable[[str], Doc]] = {
            "stripe customers": lambda key: stripe.customers.delete(key, {}),
            "stripe subscriptions": lambda key: stripe.subscriptions.cancel(key, {}),
            "stripe products": lambda key: stripe.catalog.delete_product(key, {}),
            "lago customers": lago.customers.delete,
            "lago subscriptions": lambda key: lago.subscriptions.delete(key, Query.of("")),
        }

    def make(self, noun: str, wanted: list[Doc]) -> list[Doc]:
        """Raises KeyError for a noun that cannot be made, and the billers' refusals."""
        if len(wanted) > MOST_AT_ONCE:
            raise WrongRequestError("body", f"At most {MOST_AT_ONCE} objects can be preloaded at once.")
        maker = self._make[noun]
        return [maker(each) for each in wanted]

    def patch(self, noun: str, key: str, wanted: Doc) -> Doc:
        return self._patch[noun](key, wanted)

    def delete(self, noun: str, key: str) -> Doc:
        return self._delete[noun](key)

    def _stripe_customer(self, wanted: Doc) -> Doc:
        fields = {name: value for name, value in wanted.items() if name not in ("id", "created")}
        if wanted.get("id") is not None and self._stripe.tables.customers.get(wanted["id"]) is not None:
            raise WrongRequestError("id", f"There is already a Stripe customer {wanted['id']!r}.")
        return self._stripe.customers.create(form(fields), wanted.get("id"), wanted.get("created"))

    def _stripe_subscription(self, wanted: Doc) -> Doc:
        """``price`` and ``quantity`` for short; billed by invoice, so no payment method is needed."""
        fields: Doc = {"collection_method": "send_invoice", "days_until_due": 30, **wanted}
        if "price" in fields:
            fields["items"] = [{"price": fields.pop("price"), "quantity": fields.pop("quantity", 1)}]
        return self._stripe.subscriptions.create(form(fields))

    def _lago_customer(self, wanted: Doc) -> Doc:
        """``lago_id`` may be chosen."""
        customers, tables = self._lago.customers, self._lago.tables
        if tables.customer(str(wanted.get("external_id"))) is not None:
            raise WrongRequestError("external_id", f"There is already a Lago customer {wanted['external_id']!r}.")
        if (chosen := wanted.get("lago_id")) is not None:
            tables.customers.put(chosen, {**customers.blank(str(wanted["external_id"])), "lago_id": chosen})
        fields = {name: value for name, value in wanted.items() if name != "lago_id"}
        return dict(customers.upsert(fields)["customer"])

    def _patch_lago_subscription(self, external_id: str, wanted: Doc) -> Doc:
        """``plan_code`` changes the plan, as the dashboard can; the rest is Lago's PUT."""
        found = self._lago.subscriptions.update(external_id, wanted, Query.of(""))["subscription"]
        if "plan_code" not in wanted:
            return dict(found)
        order = {
            "external_id": external_id,
            "external_customer_id": found["external_customer_id"],
            "plan_code": wanted["plan_code"],
        }
        return dict(self._lago.subscriptions.post(order, self._lago.customers)["subscription"])


def form(value: Doc) -> Doc:
    """JSON values as a form would bring them: text, '' for null."""
    return {name: _formed(each) for name, each in value.items()}


def _formed(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case dict():
            return form(value)
        case list():
            return [_formed(each) for each in value]
        case _:
            return str(value)
