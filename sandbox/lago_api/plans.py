"""Lago's plans (lago.md 4): POST is not an upsert, a code is taken once."""

from sandbox.http import Doc
from sandbox.lago_api.errors import invalid, not_found
from sandbox.lago_api.serializers import CURRENCIES, Query, Tables, new_id, paged, stamp

PER_YEAR = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}
REQUIRED = ("name", "code", "interval", "amount_cents", "amount_currency", "pay_in_advance")
PLAIN = (
    "name",
    "invoice_display_name",
    "code",
    "interval",
    "description",
    "amount_cents",
    "amount_currency",
    "trial_period",
    "pay_in_advance",
    "bill_charges_monthly",
    "bill_fixed_charges_monthly",
)


def yearly_amount(plan: Doc) -> int:
    """What decides between upgrade and downgrade; currency and usage charges do not count (lago.md 5.1)."""
    return int(plan["amount_cents"]) * PER_YEAR[plan["interval"]]


class Plans:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def create(self, sent: Doc) -> Doc:
        errors = {name: ["value_is_mandatory"] for name in REQUIRED if sent.get(name) in (None, "")}
        errors |= _wrong(sent)
        if "code" not in errors and self._tables.plan(str(sent["code"])) is not None:
            errors["code"] = ["value_already_exist"]
        if errors:
            raise invalid(errors)
        now = self._tables.now()
        row: Doc = {"lago_id": new_id(), **dict.fromkeys(PLAIN), "created_at": now, "pending_deletion": False}
        row |= {name: sent[name] for name in PLAIN if name in sent}
        self._tables.plans.put(row["lago_id"], row)
        return {"plan": shown(row)}

    def retrieve(self, code: str) -> Doc:
        return {"plan": shown(self._plan(code))}

    def update(self, code: str, sent: Doc) -> Doc:
        row = self._plan(code)
        errors = _wrong(sent)
        wanted = sent.get("code")
        if wanted not in (None, code) and self._tables.plan(str(wanted)) is not None:
            errors["code"] = ["value_already_exist"]
        if errors:
            raise invalid(errors)
        row = {**row, **{name: sent[name] for name in PLAIN if name in sent}}
        self._tables.plans.put(row["lago_id"], row)
        return {"plan": shown(row)}

    def listing(self, query: Query) -> Doc:
        rows = sorted(self._tables.plans, key=lambda row: -float(row["created_at"]))
        page, meta = paged(rows, query)
        return {"plans": [shown(row) for row in page], "meta": meta}

    def _plan(self, code: str) -> Doc:
        if (row := self._tables.plan(code)) is None:
            raise not_found("plan_not_found")
        return row


def shown(row: Doc) -> Doc:
    return {
        **row,
        "created_at": stamp(row["created_at"]),
        "customers_count": 0,
        "active_subscriptions_count": 0,
        "draft_invoices_count": 0,
        "parent_id": None,
        "charges": [],
        "fixed_charges": [],
        "entitlements": [],
        "usage_thresholds": [],
        "applicable_usage_thresholds": [],
        "taxes": [],
    }


def _wrong(sent: Doc) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    if sent.get("interval") not in (None, "", *PER_YEAR):
        errors["interval"] = ["value_is_invalid"]
    if sent.get("amount_currency") not in (None, "", *CURRENCIES):
        errors["amount_currency"] = ["value_is_invalid"]
    amount = sent.get("amount_cents")
    if amount not in (None, "") and (not isinstance(amount, int) or amount < 0):
        errors["amount_cents"] = ["value_is_out_of_range"]
    return errors
