"""Somebody at the dashboards: makes, changes and deletes objects behind our back, by the billers' own rules.

None of it is in the call log, under the limits or under a fault; Stripe's events name no request as the cause.
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
            "stripe customers": self._create_stripe_customer,
            "stripe subscriptions": self._create_stripe_subscription,
            "stripe products": lambda wanted: stripe.catalog.create_product(form_values(wanted)),
            "stripe prices": lambda wanted: stripe.catalog.create_price(form_values(wanted)),
            "stripe invoices": stripe.payments.create,
            "lago invoices": lago.invoices.create,
            "lago payer_errors": lago.invoices.report_payer_error,
            "lago payers": lago.invoices.report_payer_created,
            "lago customers": self._create_lago_customer,
            "lago subscriptions": lambda wanted: dict(
                lago.subscriptions.create_or_change(wanted, lago.customers)["subscription"]
            ),
            "lago plans": lambda wanted: dict(lago.plans.create(wanted)["plan"]),
        }
        self._patchers: dict[str, Callable[[str, JsonDocument], JsonDocument]] = {
            "stripe customers": lambda key, wanted: stripe.customers.update(key, form_values(wanted)),
            "stripe subscriptions": lambda key, wanted: stripe.subscriptions.update(key, form_values(wanted)),
            "stripe products": lambda key, wanted: stripe.catalog.update_product(key, form_values(wanted)),
            "stripe prices": lambda key, wanted: stripe.catalog.update_price(key, form_values(wanted)),
            "stripe invoices": stripe.payments.patch,
            "lago invoices": lago.invoices.patch,
            "lago customers": lambda key, wanted: lago.customers.upsert({**wanted, "external_id": key}),
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
        """Raises KeyError for a noun that cannot be made, and the billers' refusals."""
        if len(objects) > MAX_OBJECTS_PER_REQUEST:
            raise InvalidControlRequestError(
                "body", f"At most {MAX_OBJECTS_PER_REQUEST} objects can be preloaded at once."
            )
        creator = self._creators[object_type]
        return [creator(each) for each in objects]

    def patch(self, object_type: str, key: str, wanted: JsonDocument) -> JsonDocument:
        return self._patchers[object_type](key, wanted)

    def delete(self, object_type: str, key: str) -> JsonDocument:
        return self._deleters[object_type](key)

    def _create_stripe_customer(self, wanted: JsonDocument) -> JsonDocument:
        fields = {name: value for name, value in wanted.items() if name not in ("id", "created")}
        if wanted.get("id") is not None and self._stripe.tables.customers.get(wanted["id"]) is not None:
            raise InvalidControlRequestError("id", f"There is already a Stripe customer {wanted['id']!r}.")
        return self._stripe.customers.create(form_values(fields), wanted.get("id"), wanted.get("created"))

    def _create_stripe_subscription(self, wanted: JsonDocument) -> JsonDocument:
        """``price`` and ``quantity`` for short; billed by invoice, so no payment method is needed."""
        fields: JsonDocument = {"collection_method": "send_invoice", "days_until_due": 30, **wanted}
        if "price" in fields:
            fields["items"] = [{"price": fields.pop("price"), "quantity": fields.pop("quantity", 1)}]
        return self._stripe.subscriptions.create(form_values(fields))

    def _create_lago_customer(self, wanted: JsonDocument) -> JsonDocument:
        """``lago_id`` may be chosen."""
        customers, tables = self._lago.customers, self._lago.tables
        if tables.find_customer(str(wanted.get("external_id"))) is not None:
            raise InvalidControlRequestError(
                "external_id", f"There is already a Lago customer {wanted['external_id']!r}."
            )
        if (lago_id := wanted.get("lago_id")) is not None:
            tables.customers.put(lago_id, {**customers.new_row(str(wanted["external_id"])), "lago_id": lago_id})
        fields = {name: value for name, value in wanted.items() if name != "lago_id"}
        return dict(customers.upsert(fields)["customer"])

    def _patch_lago_subscription(self, external_id: str, wanted: JsonDocument) -> JsonDocument:
        """``plan_code`` changes the plan, as the dashboard can; the rest is Lago's PUT."""
        found = self._lago.subscriptions.update(external_id, wanted, LagoQuery.parse(""))["subscription"]
        if "plan_code" not in wanted:
            return dict(found)
        plan_change = {
            "external_id": external_id,
            "external_customer_id": found["external_customer_id"],
            "plan_code": wanted["plan_code"],
        }
        return dict(self._lago.subscriptions.create_or_change(plan_change, self._lago.customers)["subscription"])


def form_values(value: JsonDocument) -> JsonDocument:
    """JSON values as a form would bring them: text, '' for null."""
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
