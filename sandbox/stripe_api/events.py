"""Stripe's event list: the exact proof of what a key made (stripe.md 2), kept 30 days, never behind."""

from sandbox.http import Doc
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import invalid, no_such
from sandbox.stripe_api.serializers import EVENT_SECONDS, Tables

FIELDS: forms.Schema = {
    **forms.PAGE,
    "created": forms.window,
    "delivery_success": forms.boolean,
    "type": forms.text(clears=False),
    "types": forms.array(forms.text(clears=False), 20),
}


class Events:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def retrieve(self, event_id: str, form: Doc) -> Doc:
        forms.read(form, forms.EXPAND)
        if (row := self._tables.events.get(event_id)) is None:
            raise no_such("event", event_id)
        return row

    def listing(self, form: Doc) -> Doc:
        sent = forms.read(form, FIELDS)
        if "type" in sent and "types" in sent:
            raise invalid("type", "You may only specify one of these parameters: type, types.", "parameters_exclusive")
        wanted = [sent["type"]] if "type" in sent else sent.get("types")
        edge = self._tables.now() - EVENT_SECONDS
        rows = (row for row in self._tables.events if row["created"] >= edge)
        if wanted is not None:
            rows = (row for row in rows if _is(row["type"], wanted))
        return self._tables.page(rows, sent, "/v1/events")


def _is(kind: str, wanted: list[str]) -> bool:
    return any(kind.startswith(each[:-1]) if each.endswith("*") else kind == each for each in wanted)
