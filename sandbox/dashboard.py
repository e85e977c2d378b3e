"""Changes made in the providers' dashboards: objects are created, changed and deleted without billing-sync.

The providers' own rules apply. These changes are not in the call log, and neither rate limits nor faults affect them.
Stripe's events for them name no request as their cause.
"""

from collections.abc import Callable

from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.lago_api.provider import LagoApi
from sandbox.lago_api.serializers import LagoQuery
from sandbox.stripe_api.provider import StripeApi

MAX_OBJECTS_PER_REQUEST = 10_000


class DashboardActor:
    def __init__(self, stripe: StripeApi, lago: LagoApi) -> None:
        self._stripe = stripe
        self._lago = lago
        self._creators: dict[str, Callable[[JsonDocument], JsonDocument]] = {
            "stripe coupons": lambda sent: stripe.discounts.create_coupon(form_values(sent)),
            "stripe customers": self._create_stripe_customer,
            "stripe subscriptions": self._create_stripe_subscription,
            "stripe products": lambda sent: stripe.catalog.create_product(form_values(sent)),
            "stripe prices": lambda sent: stripe.catalog.create_price(form_values(sent)),
            "stripe invoices": stripe.payments.create,
            "lago invoices": lago.invoices.create,
            "lago payer_errors": lago.invoices.report_payer_error,
            "lago payers": lago.invoices.report_payer_created,
            "lago customers": self._create_lago_customer,
            "lago subscriptions": lambda sent: dict(
                lago.subscriptions.create_or_change(sent, lago.customers)["subscription"]
            ),
            "lago plans": lambda sent: dict(lago.plans.create(sent)["plan"]),
            "lago applied_coupons": lago.applied_coupons.apply,
        }
        self._patchers: dict[str, Callable[[str, JsonDocument], JsonDocument]] = {
            "stripe customers": self._patch_stripe_customer,
            "stripe subscriptions": lambda key, sent: stripe.subscriptions.patch(key, form_values(sent)),
            "stripe products": lambda key, sent: stripe.catalog.update_product(key, form_values(sent)),
            "stripe prices": lambda key, sent: stripe.catalog.update_price(key, form_values(sent)),
            "stripe invoices": stripe.payments.patch,
            "lago invoices": lago.invoices.patch,
            "lago customers": lambda key, sent: lago.customers.upsert({**sent, "external_id": key}),
            "lago subscriptions": self._patch_lago_subscription,
            "lago plans": lago.plans.update,
        }
        self._deleters: dict[str, Callable[[str], JsonDocument]] = {
            "stripe customers": lambda key: stripe.customers.delete(key, {}),
            "stripe subscriptions": lambda key: stripe.subscriptions.cancel(key, {}),
            "stripe products": lambda key: stripe.catalog.delete_product(key, {}),
            "lago customers": lago.customers.delete,
            "lago subscriptions": lambda key: lago.subscriptions.delete(key, LagoQuery.parse("")),
        }

    def create(self, object_type: str, objects: list[JsonDocument]) -> list[JsonDocument]:
        """Raises KeyError for an object type that cannot be created, and the providers' own errors."""
        if len(objects) > MAX_OBJECTS_PER_REQUEST:
            raise InvalidControlRequestError(
                "body", f"At most {MAX_OBJECTS_PER_REQUEST} objects can be preloaded at once."
            )
        creator = self._creators[object_type]
        return [creator(each) for each in objects]

    def patch(self, object_type: str, key: str, sent: JsonDocument) -> JsonDocument:
        return self._patchers[object_type](key, sent)

    def delete(self, object_type: str, key: str) -> JsonDocument:
        return self._deleters[object_type](key)

    def _create_stripe_customer(self, sent: JsonDocument) -> JsonDocument:
        fields = {name: value for name, value in sent.items() if name not in ("id", "created")}
        if sent.get("id") is not None and self._stripe.tables.customers.get(sent["id"]) is not None:
            raise InvalidControlRequestError("id", f"There is already a Stripe customer {sent['id']!r}.")
        return self._stripe.customers.create(form_values(fields), sent.get("id"), sent.get("created"))

    def _patch_stripe_customer(self, customer_id: str, sent: JsonDocument) -> JsonDocument:
        """``coupon`` gives the customer a discount on everything."""
        fields = {name: value for name, value in sent.items() if name != "coupon"}
        changed = self._stripe.customers.update(customer_id, form_values(fields))
        if "coupon" not in sent:
            return changed
        return self._stripe.customers.give_discount(customer_id, sent["coupon"])

    def _create_stripe_subscription(self, sent: JsonDocument) -> JsonDocument:
        """Takes ``price`` and ``quantity`` as a short form; billed by invoice, so no payment method is needed."""
        fields: JsonDocument = {"collection_method": "send_invoice", "days_until_due": 30, **sent}
        if "price" in fields:
            fields["items"] = [{"price": fields.pop("price"), "quantity": fields.pop("quantity", 1)}]
        return self._stripe.subscriptions.create(form_values(fields))

    def _create_lago_customer(self, sent: JsonDocument) -> JsonDocument:
        """``lago_id`` may be chosen."""
        customers, tables = self._lago.customers, self._lago.tables
        if tables.find_customer(str(sent.get("external_id"))) is not None:
            raise InvalidControlRequestError(
                "external_id", f"There is already a Lago customer {sent['external_id']!r}."
            )
        if (lago_id := sent.get("lago_id")) is not None:
            tables.customers.put(lago_id, {**customers.new_row(str(sent["external_id"])), "lago_id": lago_id})
        fields = {name: value for name, value in sent.items() if name != "lago_id"}
        return dict(customers.upsert(fields)["customer"])

    def _patch_lago_subscription(self, external_id: str, sent: JsonDocument) -> JsonDocument:
        """``plan_code`` changes the plan and ``plan_overrides`` its price, as the dashboard can; PUT has the rest.

        ``first_payment`` is the result of the payment that an incomplete one waits for, which no dashboard sets.
        """
        if (status := sent.get("first_payment")) is not None:
            return dict(self._lago.subscriptions.pay_first(external_id, status)["subscription"])
        if (overrides := sent.get("plan_overrides")) is not None:
            return dict(self._lago.subscriptions.override(external_id, overrides, self._lago.plans)["subscription"])
        found = self._lago.subscriptions.update(external_id, sent, LagoQuery.parse(""))["subscription"]
        if "plan_code" not in sent:
            return dict(found)
        plan_change = {
            "external_id": external_id,
            "external_customer_id": found["external_customer_id"],
            "plan_code": sent["plan_code"],
        }
        return dict(self._lago.subscriptions.create_or_change(plan_change, self._lago.customers)["subscription"])


def form_values(value: JsonDocument) -> JsonDocument:
    """JSON values as a form sends them: as text, with '' for null."""
    return {name: _form_value(each) for name, each in value.items()}


def _form_value(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case dict():
            return form_values(value)
        case list():
            return [_form_value(each) for each in value]
        case _:
            return str(value)
