"""Lago's plans (lago.md 4): POST is not an upsert, and a code is unique.

Charges for usage are shown as they were sent, with Lago's defaults. Usage itself is not simulated.
"""

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import not_found, validation_error
from sandbox.lago_api.serializers import CURRENCIES, LagoQuery, LagoTables, format_time, new_id, paginate

INTERVALS_PER_YEAR = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}
INTERVALS_OF_MONTHLY_CHARGES = frozenset({"semiannual", "yearly"})
REQUIRED_PLAN_FIELDS = ("name", "code", "interval", "amount_cents", "amount_currency", "pay_in_advance")
LAGO_PLAN_FIELDS = (
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


def yearly_amount(plan: JsonDocument) -> int:
    """The amount that decides between upgrade and downgrade; currency and usage charges are ignored (lago.md 5.1)."""
    return int(plan["amount_cents"]) * INTERVALS_PER_YEAR[plan["interval"]]


class LagoPlansApi:
    def __init__(self, tables: LagoTables) -> None:
        self._tables = tables

    def create(self, sent: JsonDocument) -> JsonDocument:
        errors = {name: ["value_is_mandatory"] for name in REQUIRED_PLAN_FIELDS if sent.get(name) in (None, "")}
        errors |= _validation_errors(sent)
        if "code" not in errors and self._tables.find_plan(str(sent["code"])) is not None:
            errors["code"] = ["value_already_exist"]
        if errors:
            raise validation_error(errors)
        now = self._tables.now()
        row: JsonDocument = {
            "lago_id": new_id(),
            **dict.fromkeys(LAGO_PLAN_FIELDS),
            "created_at": now,
            "pending_deletion": False,
        }
        row |= {name: sent[name] for name in LAGO_PLAN_FIELDS if name in sent}
        if row["interval"] in INTERVALS_OF_MONTHLY_CHARGES:
            row |= {name: bool(row[name]) for name in ("bill_charges_monthly", "bill_fixed_charges_monthly")}
        row["charges"] = [_new_charge(charge, now) for charge in sent.get("charges") or []]
        self._tables.plans.put(row["lago_id"], row)
        return {"plan": serialize(row)}

    def retrieve(self, code: str) -> JsonDocument:
        return {"plan": serialize(self._find_existing(code))}

    def update(self, code: str, sent: JsonDocument) -> JsonDocument:
        row = self._find_existing(code)
        errors = _validation_errors(sent)
        new_code = sent.get("code")
        if new_code not in (None, code) and self._tables.find_plan(str(new_code)) is not None:
            errors["code"] = ["value_already_exist"]
        if errors:
            raise validation_error(errors)
        row = {**row, **{name: sent[name] for name in LAGO_PLAN_FIELDS if name in sent}}
        self._tables.plans.put(row["lago_id"], row)
        return {"plan": serialize(row)}

    def list_plans(self, query: LagoQuery) -> JsonDocument:
        rows = sorted(
            (row for row in self._tables.plans if row.get("parent_id") is None),
            key=lambda row: -float(row["created_at"]),
        )
        page, meta = paginate(rows, query)
        return {"plans": [serialize_without(row, "fixed_charges") for row in page], "meta": meta}

    def override(self, plan: JsonDocument, changes: JsonDocument) -> JsonDocument:
        """A hidden copy for one subscription: the same code, another id, and the plan as its parent (B12)."""
        parent_id = plan.get("parent_id") or plan["lago_id"]
        child = {**plan, **changes, "lago_id": new_id(), "parent_id": parent_id, "created_at": self._tables.now()}
        self._tables.plans.put(child["lago_id"], child)
        return child

    def _find_existing(self, code: str) -> JsonDocument:
        if (row := self._tables.find_plan(code)) is None:
            raise not_found("plan_not_found")
        return row


def serialize(row: JsonDocument) -> JsonDocument:
    return {
        **row,
        "created_at": format_time(row["created_at"]),
        "customers_count": 0,
        "active_subscriptions_count": 0,
        "draft_invoices_count": 0,
        "parent_id": row.get("parent_id"),
        "charges": [{**charge, "created_at": format_time(charge["created_at"])} for charge in row.get("charges") or []],
        "fixed_charges": [],
        "entitlements": [],
        "usage_thresholds": [],
        "applicable_usage_thresholds": [],
        "taxes": [],
    }


def serialize_without(row: JsonDocument, *omitted: str) -> JsonDocument:
    return {name: value for name, value in serialize(row).items() if name not in omitted}


def _new_charge(sent: JsonDocument, now: float) -> JsonDocument:
    metric = sent.get("billable_metric_code") or "usage"
    return {
        "lago_id": new_id(),
        "lago_billable_metric_id": sent.get("billable_metric_id") or new_id(),
        "code": sent.get("code") or metric,
        "billable_metric_code": metric,
        "invoice_display_name": sent.get("invoice_display_name"),
        "created_at": now,
        "charge_model": sent.get("charge_model") or "standard",
        "pay_in_advance": sent.get("pay_in_advance", False),
        "invoiceable": sent.get("invoiceable", True),
        "regroup_paid_fees": None,
        "prorated": sent.get("prorated", False),
        "min_amount_cents": sent.get("min_amount_cents", 0),
        "accepts_target_wallet": False,
        "properties": sent.get("properties") or {"amount": "0"},
        "applied_pricing_unit": None,
        "lago_parent_id": None,
        "filters": [],
        "taxes": [],
    }


def _validation_errors(sent: JsonDocument) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    if sent.get("interval") not in (None, "", *INTERVALS_PER_YEAR):
        errors["interval"] = ["value_is_invalid"]
    if sent.get("amount_currency") not in (None, "", *CURRENCIES):
        errors["amount_currency"] = ["value_is_invalid"]
    amount = sent.get("amount_cents")
    if amount not in (None, "") and not isinstance(amount, int):  # less than 0 is accepted (lago.md 4)
        errors["amount_cents"] = ["value_is_out_of_range"]
    return errors
