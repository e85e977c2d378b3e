"""Stripe's event list: it shows what each idempotency key created (stripe.md 2), for 30 days and never out of date."""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import invalid_param, not_found
from sandbox.stripe_api.serializers import EVENT_RETENTION_SECONDS, StripeTables

EVENT_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "created": forms.time_range,
    "delivery_success": forms.boolean,
    "type": forms.text(clearable=False),
    "types": forms.array(forms.text(clearable=False), 20),
}


class StripeEventsApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def retrieve(self, event_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, forms.EXPAND_FIELDS)
        if (row := self._tables.events.get(event_id)) is None:
            raise not_found("event", event_id)
        return row

    def list_events(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, EVENT_LIST_FIELDS)
        if "type" in sent and "types" in sent:
            raise invalid_param(
                "type", "You may only specify one of these parameters: type, types.", "parameters_exclusive"
            )
        types = [sent["type"]] if "type" in sent else sent.get("types")
        retained_since = self._tables.now() - EVENT_RETENTION_SECONDS
        rows = (row for row in self._tables.events if row["created"] >= retained_since)
        if types is not None:
            rows = (row for row in rows if _matches_type(row["type"], types))
        return self._tables.page(rows, sent, "/v1/events")


def _matches_type(event_type: str, types: list[str]) -> bool:
    return any(event_type.startswith(each[:-1]) if each.endswith("*") else event_type == each for each in types)
