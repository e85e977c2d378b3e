"""Activation rules: with one, a subscription is ``incomplete`` until its first payment (lago.md 5.4).

Lago knows one kind of rule, ``payment``. It applies to plans that are paid in advance. A rule with a timeout expires in
the job of twenty past the hour. The invoice that the payment is for is open, so no list has it.
"""

from typing import Literal

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import validation_error
from sandbox.lago_api.periods import HOUR, next_billing_run
from sandbox.lago_api.serializers import format_time, new_id

EXPIRY_MINUTE = 20

RuleOutcome = Literal["satisfied", "failed", "expired"]


def parse(sent: JsonDocument, customer: JsonDocument | None, now: float) -> list[JsonDocument]:
    """Lago asks for a payer when the rule is set, and the sandbox takes one that is linked as able to pay."""
    rules = sent.get("activation_rules") or []
    if not isinstance(rules, list):
        raise validation_error({"activation_rules": ["invalid_format"]})
    for rule in rules:
        if rule.get("type") != "payment":
            raise validation_error({"activation_rules": ["invalid_type"]})
        hours = rule.get("timeout_hours", 0)
        if not isinstance(hours, int) or hours < 0:
            raise validation_error({"timeout_hours": ["value_must_be_positive_or_zero"]})
        if is_manual(sent):
            raise validation_error({"customer": ["manual_payment_method_invalid_for_payment_activation_rules"]})
        if customer is None or customer["payment_provider"] is None:
            raise validation_error({"customer": ["no_linked_payment_provider"]})
    return [
        {
            "lago_id": new_id(),
            "type": "payment",
            "timeout_hours": rule.get("timeout_hours", 0),
            "status": "inactive",
            "expires_at": None,
            "created_at": now,
            "updated_at": now,
        }
        for rule in rules
    ]


def is_manual(sent: JsonDocument) -> bool:
    return (sent.get("payment_method") or {}).get("payment_method_type") == "manual"


def evaluate(row: JsonDocument, plan: JsonDocument, now: float) -> JsonDocument:
    """The subscription at its start: a rule that applies begins to wait."""

    def evaluated(rule: JsonDocument) -> JsonDocument:
        if not plan["pay_in_advance"]:
            return {**rule, "status": "not_applicable", "updated_at": now}
        expires_at = now + rule["timeout_hours"] * HOUR if rule["timeout_hours"] else None
        return {**rule, "status": "pending", "expires_at": expires_at, "updated_at": now}

    return {**row, "activation_rules": [evaluated(rule) for rule in row.get("activation_rules", [])]}


def conclude(row: JsonDocument, outcome: RuleOutcome, now: float) -> JsonDocument:
    rules = [{**rule, "status": outcome, "updated_at": now} for rule in row["activation_rules"]]
    return {**row, "activation_rules": rules}


def is_waiting(row: JsonDocument) -> bool:
    return any(rule["status"] == "pending" for rule in row.get("activation_rules", []))


def expires_at(row: JsonDocument) -> float | None:
    """When the job cancels it; None: never."""
    moments = [rule["expires_at"] for rule in row["activation_rules"] if rule["expires_at"] is not None]
    return next_billing_run(min(moments), EXPIRY_MINUTE) if moments else None


def serialize(row: JsonDocument) -> list[JsonDocument]:
    times = ("expires_at", "created_at", "updated_at")
    return [{**rule, **{name: format_time(rule[name]) for name in times}} for rule in row.get("activation_rules", [])]
