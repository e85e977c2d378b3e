"""Lago's subscriptions: one POST creates, upgrades, downgrades or does nothing (the table of lago.md 5.1).

Behavior that surprises callers is simulated too. A POST of the current plan leaves a pending downgrade in place, and an
unknown customer is created silently. PUT ignores ``plan_code``; ``status=pending`` without brackets filters nothing.
No request ends a subscription that waits for its first payment (lago.md 5.4).
"""

from datetime import UTC, datetime

from sandbox.http import JsonDocument
from sandbox.lago_api import activation_rules, fees, plans
from sandbox.lago_api.activation_rules import RuleOutcome
from sandbox.lago_api.customers import NOT_IN_OTHER_OBJECTS, LagoCustomersApi
from sandbox.lago_api.customers import serialize_without as serialize_customer_without
from sandbox.lago_api.errors import forbidden, not_allowed, not_found, validation_error
from sandbox.lago_api.periods import billing_period, next_billing_run
from sandbox.lago_api.serializers import (
    LagoQuery,
    LagoTables,
    format_time,
    format_time_milliseconds,
    new_id,
    paginate,
    parse_time,
    to_text,
)

LAGO_SUBSCRIPTION_STATUSES = frozenset({"pending", "active", "terminated", "canceled", "incomplete"})
CREDIT_NOTE_OPTIONS = ("credit", "refund", "offset", "skip")
TERMINATION_INVOICE_OPTIONS = ("generate", "skip")


class LagoSubscriptionsApi:
    def __init__(self, tables: LagoTables) -> None:
        self._tables = tables
        tables.subscriptions.schedule(self._due_at, self._on_due)

    def create_or_change(self, sent: JsonDocument, customers: LagoCustomersApi) -> JsonDocument:
        plan = self._tables.find_plan(to_text(sent.get("plan_code")) or "")
        if plan is None:
            raise not_found("plan_not_found")
        starts, ends = self._dates(sent)
        if sent.get("plan_overrides"):
            raise forbidden("feature_unavailable")
        customer = self._ensure_customer(sent, plan, customers)
        external_id = (to_text(sent.get("external_id")) or "").strip()
        if not external_id:
            raise validation_error({"external_id": ["value_is_mandatory"]})
        if sent.get("billing_time") not in (None, "calendar", "anniversary"):
            raise validation_error({"billing_time": ["value_is_invalid"]})
        rules = activation_rules.parse(sent, customer, self._tables.now())
        current = self._find_current(customer["lago_id"], external_id)
        if current is None:
            self._check_id_is_free(external_id)
            row = _new_row(customer["lago_id"], plan, external_id, self._tables.now(), sent)
            row["activation_rules"] = rules
            row |= {"subscription_at": starts, "ending_at": ends}
            row["billing_time"] = sent.get("billing_time") or "calendar"
            return self._response(self._start(row))
        if current["plan"] == plan["lago_id"]:
            return self._response(current)
        if current["status"] == "pending":
            current = {**current, "plan": plan["lago_id"], "name": sent.get("name") or current["name"]}
            current |= {"activation_rules": rules} if sent.get("activation_rules") is not None else {}
            self._save(current)
            return self._response(current)
        self._cancel_silently(current)
        successor = {**self._new_successor(current, plan, sent), "activation_rules": rules}
        if plans.yearly_amount(plan) >= plans.yearly_amount(self._tables.plan_of(current)):
            return self._response(self._activate(successor, "upgrade"))
        self._save(successor)
        self._emit("subscription.updated", current)
        return self._response(current)

    def retrieve(self, external_id: str, query: LagoQuery) -> JsonDocument:
        return self._response(self._find_latest(external_id, query.get("status") or "active"))

    def list_subscriptions(self, query: LagoQuery, customer: JsonDocument | None = None) -> JsonDocument:
        rows = self._candidates(query, customer)
        statuses = query.get_list("status") or ["active"]
        if not set(statuses) - LAGO_SUBSCRIPTION_STATUSES:  # one unknown value disables the filter
            rows = [row for row in rows if row["status"] in statuses]
        if (code := query.get("plan_code")) is not None:
            rows = [row for row in rows if self._tables.plan_of(row)["code"] == code]
        if (external_id := query.get("external_id")) is not None:
            rows = [row for row in rows if row["external_id"] == external_id]
        rows.sort(key=lambda row: (-float(row["subscription_at"]), -float(row["created_at"])))
        page, meta = paginate(rows, query)
        return {"subscriptions": [self.serialize(row) for row in page], "meta": meta}

    def _candidates(self, query: LagoQuery, customer: JsonDocument | None) -> list[JsonDocument]:
        external_customer_id = query.get("external_customer_id")
        if customer is None and external_customer_id is None:
            return list(self._tables.subscriptions)
        owner = customer or self._tables.find_customer(external_customer_id or "")
        return self._tables.subscriptions.find_by("customer", owner["lago_id"]) if owner is not None else []

    def update(self, external_id: str, sent: JsonDocument, query: LagoQuery) -> JsonDocument:
        """A field that is not in Lago's permit list, such as ``plan_code``, changes nothing and the response is 200."""
        rows = self._tables.subscriptions.find_by("external_id", external_id)
        if not rows:
            raise not_found("subscription_not_found")
        row = dict(rows[0] if len(rows) == 1 else self._find_latest(external_id, query.get("status") or "active"))
        if row["status"] == "incomplete":
            raise not_allowed("subscription_incomplete")
        if "name" in sent:
            row["name"] = sent["name"]
        if "ending_at" in sent:
            row["ending_at"] = parse_time("ending_at", sent["ending_at"])
            self._check_ending(row["ending_at"], row["subscription_at"])
        if sent.get("subscription_at") and _is_future(row):
            row["subscription_at"] = parse_time("subscription_at", sent["subscription_at"])
        for name, allowed in (
            ("on_termination_credit_note", CREDIT_NOTE_OPTIONS),
            ("on_termination_invoice", TERMINATION_INVOICE_OPTIONS),
        ):
            if sent.get(name) is not None:
                row[name] = _checked_option(name, sent[name], allowed)
        if (method := sent.get("payment_method")) is not None:
            row["payment_method_type"] = method.get("payment_method_type") or row["payment_method_type"]
        self._save(row)
        self._tables.state.timers.run_due()
        updated = self._response(self._tables.subscriptions.get(row["lago_id"]) or row)["subscription"]
        return {"subscription": {name: value for name, value in updated.items() if name != "entitlements"}}

    def override(self, external_id: str, changes: JsonDocument, plans_api: plans.LagoPlansApi) -> JsonDocument:
        """A price of its own, as the dashboard of a licensed Lago sets it: a child plan from the next invoice on."""
        row = self._find_latest(external_id, "active")
        child = plans_api.override(self._tables.plan_of(row), changes)
        self._save({**row, "plan": child["lago_id"]})
        return self.retrieve(external_id, LagoQuery.parse(""))

    def delete(self, external_id: str, query: LagoQuery) -> JsonDocument:
        """``status=pending`` cancels what is scheduled; any other status is ignored (lago.md 5.3)."""
        if query.get("status") == "pending":
            return self._brief_response(self._cancel(self._find_latest(external_id, "pending")))
        row = self._find_latest(external_id, "active")
        successor = self._find_successor(row)
        if successor is not None and successor["status"] == "incomplete":
            raise validation_error({"base": ["next_subscription_incomplete"]})
        credit, invoice = query.get("on_termination_credit_note"), query.get("on_termination_invoice")
        if credit:
            row = {
                **row,
                "on_termination_credit_note": _checked_option(
                    "on_termination_credit_note", credit, CREDIT_NOTE_OPTIONS
                ),
            }
        if invoice:
            row = {
                **row,
                "on_termination_invoice": _checked_option(
                    "on_termination_invoice", invoice, TERMINATION_INVOICE_OPTIONS
                ),
            }
        self._cancel_silently(row)
        return self._brief_response(self._terminate(row))

    def pay_first(self, external_id: str, status: object) -> JsonDocument:
        """The result of the payment that an incomplete subscription waits for: ``succeeded`` or ``failed``."""
        row = self._find_latest(external_id, "incomplete")
        self._conclude(row, "satisfied" if status == "succeeded" else "failed")
        return self._brief_response(self._tables.subscriptions.get(row["lago_id"]) or row)

    def end_all(self, lago_customer_id: str) -> None:
        """What Lago's job does after a customer was deleted."""
        for row in self._tables.subscriptions.find_by("customer", lago_customer_id):
            if row["status"] == "active":
                self._terminate(row)
            elif row["status"] == "pending":
                self._save(self._canceled(row))

    # --- the checks of POST, in Lago's order

    def _dates(self, sent: JsonDocument) -> tuple[float, float | None]:
        now = self._tables.now()
        starts = parse_time("subscription_at", sent.get("subscription_at")) or now
        ends = parse_time("ending_at", sent.get("ending_at"))
        self._check_ending(ends, starts)
        return starts, ends

    def _check_ending(self, ends: float | None, starts: float) -> None:
        if ends is not None and _day(ends) <= max(_day(self._tables.now()), _day(starts)):
            raise validation_error({"ending_at": ["invalid_date"]})

    def _ensure_customer(self, sent: JsonDocument, plan: JsonDocument, customers: LagoCustomersApi) -> JsonDocument:
        """Create an unknown customer silently; it stays even if a later check fails (lago.md 5.1)."""
        external_id = (to_text(sent.get("external_customer_id")) or "").strip()
        if not external_id:
            raise validation_error({"external_customer_id": ["value_is_mandatory"]})
        customer = self._tables.find_customer(external_id) or customers.new_row(external_id)
        if customer["currency"] is None:
            customer = {**customer, "currency": plan["amount_currency"]}
        elif customer["currency"] != plan["amount_currency"] and self._tables.state.settings.lago_currency_locked:
            raise validation_error({"currency": ["currencies_does_not_match"]})
        self._tables.customers.put(customer["lago_id"], customer)
        return customer

    def _find_current(self, lago_customer_id: str, external_id: str) -> JsonDocument | None:
        of_customer = [
            row
            for row in self._tables.subscriptions.find_by("external_id", external_id)
            if row["lago_customer_id"] == lago_customer_id
        ]
        if any(row["status"] == "incomplete" for row in of_customer):
            raise validation_error({"subscription": ["subscription_incomplete"]})
        rows = [row for row in of_customer if row["status"] == "active" or _is_future(row)]
        return next((row for row in rows if row["status"] == "active"), rows[0] if rows else None)

    def _check_id_is_free(self, external_id: str) -> None:
        rows = self._tables.subscriptions.find_by("external_id", external_id)
        if any(row["status"] == "active" for row in rows):
            raise validation_error({"external_id": ["value_already_exist"]})

    # --- state changes

    def _start(self, row: JsonDocument) -> JsonDocument:
        """Activate at once if ``subscription_at`` is today or earlier; otherwise it stays pending."""
        starts, now = row["subscription_at"], self._tables.now()
        if _day(starts) > _day(now):
            self._save(row)
            return row
        return self._activate(row, "subscription_create", started_at=min(starts, now))

    def _activate(self, row: JsonDocument, reason: str, started_at: float | None = None) -> JsonDocument:
        """It takes the place of its predecessor, if there is one; or it waits for its first payment."""
        now = self._tables.now()
        plan = self._tables.plan_of(row)
        row = {**row, "started_at": now if started_at is None else started_at}
        row = activation_rules.evaluate(row, plan, now)
        if not activation_rules.is_waiting(row):
            return self._begin(row, reason)
        row = {**row, "status": "incomplete"}
        self._save(row)
        self._emit("subscription.incomplete", row)
        return row

    def _begin(self, row: JsonDocument, reason: str) -> JsonDocument:
        now, plan = self._tables.now(), self._tables.plan_of(row)
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        if previous is not None and previous["status"] == "active":
            self._end_replaced(previous, is_upgrade=reason == "upgrade")
        starts, ends = self._charges_period(row, plan, now)
        row = {**row, "status": "active", "activated_at": now}
        row |= {"period_start": max(starts, row["started_at"]), "period_end": ends}
        row = self._bill_ahead(row, reason) if plan["pay_in_advance"] else row
        self._save(row)
        self._emit("subscription.started", row)
        return row

    def _conclude(self, row: JsonDocument, outcome: RuleOutcome) -> None:
        """What a payment, or the job that knows the timeout, makes of an incomplete subscription."""
        now = self._tables.now()
        row = activation_rules.conclude(row, outcome, now)
        if outcome == "satisfied":
            self._begin(row, self._reason(row))
            return
        reason = "timeout" if outcome == "expired" else "payment_failed"
        row = {**self._canceled(row), "cancellation_reason": reason}
        self._save(row)
        self._emit("subscription.canceled", row)

    def _reason(self, row: JsonDocument) -> str:
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        if previous is None:
            return "subscription_create"
        amounts = [plans.yearly_amount(self._tables.plan_of(each)) for each in (row, previous)]
        return "upgrade" if amounts[0] >= amounts[1] else "downgrade"

    def _end_replaced(self, row: JsonDocument, *, is_upgrade: bool) -> None:
        """End a subscription whose successor starts now. Only the end by an upgrade sends an update, too."""
        row = {**row, "status": "terminated", "terminated_at": self._tables.now()}
        if is_upgrade and self._tables.plan_of(row)["pay_in_advance"]:
            row["on_termination_credit_note"] = row["on_termination_credit_note"] or "credit"
        self._save(row)
        if is_upgrade:
            self._emit("subscription.updated", row)
        self._emit("subscription.terminated", row)
        if is_upgrade and self._tables.plan_of(row)["pay_in_advance"]:
            self._credit(row, "upgrade_credit", is_replaced=True)
        elif is_upgrade:
            self._bill_behind(row, is_replaced=True)

    def _new_successor(self, current: JsonDocument, plan: JsonDocument, sent: JsonDocument) -> JsonDocument:
        """It keeps the dates and the billing time, but the name only if it is sent again (lago.md 5.1)."""
        row = _new_row(current["lago_customer_id"], plan, current["external_id"], self._tables.now(), sent)
        row |= {name: current[name] for name in ("subscription_at", "billing_time")}
        ends = sent.get("ending_at")
        row["ending_at"] = parse_time("ending_at", ends) if "ending_at" in sent else current["ending_at"]
        row["previous"] = current["lago_id"]
        return row

    def _cancel_silently(self, current: JsonDocument) -> None:
        """Cancel what is scheduled after this subscription. Lago sends no webhook about it (lago.md 8)."""
        for row in self._tables.subscriptions.find_by("previous", current["lago_id"]):
            if row["status"] == "pending":
                self._save(self._canceled(row))

    def _cancel(self, row: JsonDocument) -> JsonDocument:
        """Cancel on request: the only cancellation that sends webhooks."""
        row = self._canceled(row)
        self._save(row)
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        if previous is not None and previous["status"] == "active":
            self._emit("subscription.updated", previous)
        self._emit("subscription.terminated", row)
        return row

    def _canceled(self, row: JsonDocument) -> JsonDocument:
        return {**row, "status": "canceled", "canceled_at": self._tables.now()}

    def _terminate(self, row: JsonDocument) -> JsonDocument:
        plan = self._tables.plan_of(row)
        row = {**row, "status": "terminated", "terminated_at": self._tables.now()}
        if plan["pay_in_advance"]:
            row["on_termination_credit_note"] = row["on_termination_credit_note"] or "credit"
        self._save(row)
        if plan["pay_in_advance"]:
            if row["on_termination_credit_note"] != "skip":
                self._credit(row, "termination_credit", is_replaced=False)
        elif row["on_termination_invoice"] == "generate":
            self._bill_behind(row, is_replaced=False)
        self._emit("subscription.updated", row)
        self._emit("subscription.terminated", row)
        return row

    def _on_due(self, row: JsonDocument, when: float) -> None:
        if row["status"] == "incomplete":
            self._conclude(row, "expired")
        elif row["status"] == "pending":
            self._activate(row, "subscription_create")
        elif row["ending_at"] is not None and row["ending_at"] <= when:
            self._cancel_silently(row)
            self._terminate(row)
        else:
            self._next_period(row)

    def _next_period(self, row: JsonDocument) -> None:
        """Charge the period that ended; then a pending downgrade takes effect, or the plan renews.

        With monthly charges a yearly plan comes here each month: a downgrade does take effect then (lago.md 5.1, B9).
        """
        plan, now = self._tables.plan_of(row), self._tables.now()
        ended = self._period(row, plan, row["period_end"] - 1)
        renews = ended != self._period(row, plan, now)
        if renews and not plan["pay_in_advance"]:
            price = plan["amount_cents"]
            self._charge(row, fees.ahead(price, row["started_at"], ended), price, "renewal")
        successor = self._find_successor(row)
        switches = successor is not None and successor["status"] == "pending"
        if successor is not None and switches and self._activate(successor, "downgrade")["status"] == "active":
            return
        starts, ends = self._charges_period(row, plan, now)
        row = {**row, "period_start": starts, "period_end": ends}
        if renews and plan["pay_in_advance"] and not switches:  # the job bills what switches only by the switch
            row = self._bill_ahead(row, "renewal")
        self._save(row)

    @staticmethod
    def _period(row: JsonDocument, plan: JsonDocument, when: float) -> tuple[float, float]:
        return billing_period(
            interval=plan["interval"],
            billing_time=row["billing_time"],
            subscription_at=row["subscription_at"],
            moment=when,
        )

    def _charges_period(self, row: JsonDocument, plan: JsonDocument, when: float) -> tuple[float, float]:
        """The period that Lago shows and bills by: with monthly charges a month, whatever the plan's interval."""
        return self._period(row, {**plan, "interval": "monthly"} if plan["bill_charges_monthly"] else plan, when)

    def _due_at(self, row: JsonDocument) -> float | None:
        if row["status"] == "active":
            billed_at = next_billing_run(row["period_end"], self._tables.state.settings.lago_billing_minute)
            return float(min(billed_at, row["ending_at"] or billed_at))
        if row["status"] == "incomplete":
            return activation_rules.expires_at(row)
        return float(row["subscription_at"]) if _is_future(row) else None

    def _bill_ahead(self, row: JsonDocument, reason: str) -> JsonDocument:
        """The rest of the period; the first one of an anniversary is whole. What was billed limits a later credit."""
        plan, now = self._tables.plan_of(row), self._tables.now()
        price = plan["amount_cents"]
        is_whole = row["billing_time"] == "anniversary" and row["previous"] is None
        is_whole = is_whole or fees.days_between(row["started_at"], row["created_at"]) > 0  # backdated
        amount = price if is_whole else fees.ahead(price, row["started_at"], self._period(row, plan, now))
        self._charge(row, amount, price, reason)
        return {**row, "fee": {"amount": amount, "price": price}}

    def _bill_behind(self, row: JsonDocument, *, is_replaced: bool) -> None:
        plan, now = self._tables.plan_of(row), self._tables.now()
        price, period = plan["amount_cents"], self._period(row, plan, now)
        amount = fees.used(price, row["started_at"], now, period, is_replaced=is_replaced)
        self._charge(row, amount, price, "termination_invoice")

    def _credit(self, row: JsonDocument, reason: str, *, is_replaced: bool) -> None:
        """Nothing, if the job has not billed the period yet in which it ends."""
        plan, now, fee = self._tables.plan_of(row), self._tables.now(), row.get("fee")
        if fee is None or row["period_end"] <= now:
            return
        unused = fees.unused(fee["price"], now, self._period(row, plan, now), is_replaced=is_replaced)
        self._charge(row, -min(unused, fee["amount"]), -fee["price"], reason)

    def _charge(self, row: JsonDocument, amount: int, price: int, reason: str) -> None:
        customer = self._tables.customers.get(row["lago_customer_id"])
        self._tables.state.ledger.charge(
            "lago",
            customer=customer["external_id"] if customer else "",
            subscription=row["external_id"],
            amount=amount,
            price=price,
            currency=self._tables.plan_of(row)["amount_currency"],
            reason=reason,
        )

    def _emit(self, event_type: str, row: JsonDocument) -> None:
        details: JsonDocument = {} if event_type == "subscription.terminated" else {"entitlements": []}

        def document() -> JsonDocument:
            customer = self._tables.customers.get(row["lago_customer_id"])
            shown = None if customer is None else serialize_customer_without(customer, *NOT_IN_OTHER_OBJECTS)
            current = self._tables.subscriptions.get(row["lago_id"]) or row
            plan = plans.serialize_without(self._tables.plan_of(current), "fixed_charges", "entitlements")
            return {**self.serialize(current), "plan": plan, **details, "customer": shown}

        self._tables.emit(event_type, "subscription", row["lago_id"], document)

    def _save(self, row: JsonDocument) -> None:
        self._tables.subscriptions.put(row["lago_id"], row)

    def _find_latest(self, external_id: str, status: str) -> JsonDocument:
        rows = [
            row for row in self._tables.subscriptions.find_by("external_id", external_id) if row["status"] == status
        ]
        if not rows:
            raise not_found("subscription_not_found")
        return max(rows, key=lambda row: float(row["created_at"]))

    # --- responses

    def _response(self, row: JsonDocument) -> JsonDocument:
        details: JsonDocument = {"entitlements": [], "applicable_usage_thresholds": []}
        return {"subscription": self._brief_response(row)["subscription"] | details}

    def _brief_response(self, row: JsonDocument) -> JsonDocument:
        """An end shows less than the other responses."""
        plan = plans.serialize_without(self._tables.plan_of(row), "fixed_charges", "entitlements")
        return {"subscription": {**self.serialize(row), "plan": plan, "applied_invoice_custom_sections": []}}

    def serialize(self, row: JsonDocument) -> JsonDocument:
        plan = self._tables.plan_of(row)
        customer = self._tables.customers.get(row["lago_customer_id"])
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        successor = self._find_successor(row)
        scheduled = successor is not None and successor["status"] == "pending"
        active = row["status"] == "active"
        period_start, period_end = self._shown_period(row, plan)
        return {
            "lago_id": row["lago_id"],
            "external_id": row["external_id"],
            "lago_customer_id": row["lago_customer_id"],
            "external_customer_id": customer["external_id"] if customer else None,
            "name": row["name"],
            "plan_code": plan["code"],
            "plan_amount_cents": plan["amount_cents"],
            "plan_amount_currency": plan["amount_currency"],
            "status": row["status"],
            "billing_time": row["billing_time"],
            "subscription_at": format_time(row["subscription_at"]),
            "started_at": format_time_milliseconds(row["started_at"]),
            "trial_ended_at": None,
            "ending_at": format_time(row["ending_at"]),
            "terminated_at": format_time(row["terminated_at"]),
            "canceled_at": format_time(row["canceled_at"]),
            "created_at": format_time(row["created_at"]),
            "previous_plan_code": self._tables.plan_of(previous)["code"] if previous else None,
            "next_plan_code": self._tables.plan_of(successor)["code"] if successor else None,
            "downgrade_plan_date": self._next_period_date(row, plan) if scheduled and active else None,
            "current_billing_period_started_at": format_time(period_start),
            "current_billing_period_ending_at": format_time(period_end),
            "on_termination_credit_note": row["on_termination_credit_note"],
            "on_termination_invoice": row["on_termination_invoice"],
            "progressive_billing_disabled": False,
            "consolidate_invoice": True,
            "purchase_order_number": None,
            "cancellation_reason": row.get("cancellation_reason"),
            "activated_at": format_time(row["activated_at"]),
            "payment_method": {
                "payment_method_id": None,
                "payment_method_type": row.get("payment_method_type", "provider"),
            },
            "activation_rules": activation_rules.serialize(row),
        }

    def _shown_period(self, row: JsonDocument, plan: JsonDocument) -> tuple[float | None, float | None]:
        """The period of this moment, up to its last second, also before the billing job ran; or that of the end."""
        if row["status"] not in {"active", "incomplete"}:
            return row["period_start"], row["terminated_at"]
        starts, ends = self._charges_period(row, plan, self._tables.now())
        return max(starts, row["started_at"]), ends - 1

    def _next_period_date(self, row: JsonDocument, plan: JsonDocument) -> str:
        """Computed from this moment: after the period's end it names the end of the next one (lago.md 5.1, B1)."""
        return str(format_time(self._period(row, plan, self._tables.now())[1]))[:10]

    def _find_successor(self, row: JsonDocument) -> JsonDocument | None:
        rows = [
            each
            for each in self._tables.subscriptions.find_by("previous", row["lago_id"])
            if each["status"] != "canceled"
        ]
        return max(rows, key=lambda each: float(each["created_at"]), default=None)


def _new_row(
    lago_customer_id: str, plan: JsonDocument, external_id: str, now: float, sent: JsonDocument
) -> JsonDocument:
    return {
        "lago_id": new_id(),
        "external_id": external_id,
        "lago_customer_id": lago_customer_id,
        "plan": plan["lago_id"],
        "previous": None,
        "name": sent.get("name") or "",
        "status": "pending",
        "billing_time": "calendar",
        "subscription_at": now,
        "started_at": None,
        "activated_at": None,
        "ending_at": None,
        "terminated_at": None,
        "canceled_at": None,
        "created_at": now,
        "period_start": None,
        "period_end": None,
        "fee": None,
        "on_termination_credit_note": None,
        "on_termination_invoice": "generate",
        # A plan change keeps neither: what the body leaves out is the default again (lago.md 5.1).
        "payment_method_type": (sent.get("payment_method") or {}).get("payment_method_type") or "provider",
        "activation_rules": [],
        "cancellation_reason": None,
    }


def _is_future(row: JsonDocument) -> bool:
    """Whether it starts in the future: pending without a predecessor (with one it is a scheduled downgrade)."""
    return bool(row["status"] == "pending" and row["previous"] is None)


def _day(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _checked_option(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise validation_error({name: ["invalid_value"]})
    return value
