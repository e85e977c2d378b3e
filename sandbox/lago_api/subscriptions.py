"""Lago's subscriptions: one POST is create, upgrade, downgrade and no-op (the table of lago.md 5.1).

Kept where naive code goes wrong: a POST of the current plan leaves a pending downgrade in place, an unknown customer is
made in silence, PUT ignores ``plan_code``, ``status=pending`` without brackets filters nothing.
"""

from datetime import UTC, datetime

from sandbox.http import Doc
from sandbox.lago_api import plans
from sandbox.lago_api.customers import Customers
from sandbox.lago_api.customers import shown as shown_customer
from sandbox.lago_api.errors import forbidden, invalid, not_found
from sandbox.lago_api.periods import period
from sandbox.lago_api.serializers import Query, Tables, fine_stamp, moment, new_id, paged, stamp, text

STATUSES = frozenset({"pending", "active", "terminated", "canceled", "incomplete"})
CREDIT_NOTES = ("credit", "refund", "offset", "skip")
INVOICES = ("generate", "skip")


class Subscriptions:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        tables.subscriptions.schedule(_due, self._tick)

    def post(self, sent: Doc, customers: Customers) -> Doc:
        plan = self._tables.plan(text(sent.get("plan_code")) or "")
        if plan is None:
            raise not_found("plan_not_found")
        starts, ends = self._dates(sent)
        if sent.get("plan_overrides"):
            raise forbidden("feature_unavailable")
        customer = self._customer(sent, plan, customers)
        external_id = (text(sent.get("external_id")) or "").strip()
        if not external_id:
            raise invalid({"external_id": ["value_is_mandatory"]})
        if sent.get("billing_time") not in (None, "calendar", "anniversary"):
            raise invalid({"billing_time": ["value_is_invalid"]})
        current = self._current(customer["lago_id"], external_id)
        if current is None:
            self._check_free(external_id)
            row = _blank(customer["lago_id"], plan, external_id, self._tables.now(), sent)
            row |= {"subscription_at": starts, "ending_at": ends}
            row["billing_time"] = sent.get("billing_time") or "calendar"
            return self._answer(self._begin(row))
        if current["plan"] == plan["lago_id"]:
            return self._answer(current)
        if current["status"] == "pending":
            current = {**current, "plan": plan["lago_id"], "name": sent.get("name") or current["name"]}
            self._save(current)
            return self._answer(current)
        if plans.yearly_amount(plan) >= plans.yearly_amount(self._tables.plan_of(current)):
            return self._answer(self._upgrade(current, plan, sent))
        return self._answer(self._downgrade(current, plan, sent))

    def retrieve(self, external_id: str, query: Query) -> Doc:
        return self._answer(self._latest(external_id, query.one("status") or "active"))

    def listing(self, query: Query, customer: Doc | None = None) -> Doc:
        rows = self._candidates(query, customer)
        wanted = query.many("status") or ["active"]
        if not set(wanted) - STATUSES:  # one unknown value disables the filter
            rows = [row for row in rows if row["status"] in wanted]
        if (code := query.one("plan_code")) is not None:
            rows = [row for row in rows if self._tables.plan_of(row)["code"] == code]
        if (external_id := query.one("external_id")) is not None:
            rows = [row for row in rows if row["external_id"] == external_id]
        rows.sort(key=lambda row: (-float(row["subscription_at"]), -float(row["created_at"])))
        page, meta = paged(rows, query)
        return {"subscriptions": [self.shown(row) for row in page], "meta": meta}

    def _candidates(self, query: Query, customer: Doc | None) -> list[Doc]:
        external_customer_id = query.one("external_customer_id")
        if customer is None and external_customer_id is None:
            return list(self._tables.subscriptions)
        owner = customer or self._tables.customer(external_customer_id or "")
        return self._tables.subscriptions.by("customer", owner["lago_id"]) if owner is not None else []

    def update(self, external_id: str, sent: Doc, query: Query) -> Doc:
        """What is not in Lago's permit list, ``plan_code`` first of all, changes nothing and is answered 200."""
        rows = self._tables.subscriptions.by("external_id", external_id)
        if not rows:
            raise not_found("subscription_not_found")
        row = dict(rows[0] if len(rows) == 1 else self._latest(external_id, query.one("status") or "active"))
        if "name" in sent:
            row["name"] = sent["name"]
        if "ending_at" in sent:
            row["ending_at"] = moment("ending_at", sent["ending_at"])
            self._check_ending(row["ending_at"], row["subscription_at"])
        if sent.get("subscription_at") and _is_future(row):
            row["subscription_at"] = moment("subscription_at", sent["subscription_at"])
        for name, allowed in (("on_termination_credit_note", CREDIT_NOTES), ("on_termination_invoice", INVOICES)):
            if sent.get(name) is not None:
                row[name] = _allowed(name, sent[name], allowed)
        self._save(row)
        self._tables.world.agenda.run()
        return self._answer(self._tables.subscriptions.get(row["lago_id"]) or row)

    def delete(self, external_id: str, query: Query) -> Doc:
        row = self._latest(external_id, query.one("status") or "active")
        if row["status"] in ("terminated", "canceled"):
            raise not_found("subscription_not_found")
        if row["status"] == "pending":
            return self._answer(self._cancel(row))
        credit, invoice = query.one("on_termination_credit_note"), query.one("on_termination_invoice")
        if credit:
            row = {**row, "on_termination_credit_note": _allowed("on_termination_credit_note", credit, CREDIT_NOTES)}
        if invoice:
            row = {**row, "on_termination_invoice": _allowed("on_termination_invoice", invoice, INVOICES)}
        self._cancel_pending(row)
        return self._answer(self._terminate(row))

    def end_all(self, lago_customer_id: str) -> None:
        """What Lago's job does once a customer is deleted."""
        for row in self._tables.subscriptions.by("customer", lago_customer_id):
            if row["status"] == "active":
                self._terminate(row)
            elif row["status"] == "pending":
                self._cancel(row)

    # --- the checks of POST, in Lago's order

    def _dates(self, sent: Doc) -> tuple[float, float | None]:
        now = self._tables.now()
        starts = moment("subscription_at", sent.get("subscription_at")) or now
        ends = moment("ending_at", sent.get("ending_at"))
        self._check_ending(ends, starts)
        return starts, ends

    def _check_ending(self, ends: float | None, starts: float) -> None:
        if ends is not None and _day(ends) <= max(_day(self._tables.now()), _day(starts)):
            raise invalid({"ending_at": ["invalid_date"]})

    def _customer(self, sent: Doc, plan: Doc, customers: Customers) -> Doc:
        """Made in silence when unknown, and it stays even if a later check fails (lago.md 5.1)."""
        external_id = (text(sent.get("external_customer_id")) or "").strip()
        if not external_id:
            raise invalid({"external_customer_id": ["value_is_mandatory"]})
        customer = self._tables.customer(external_id) or customers.blank(external_id)
        if customer["currency"] is None:
            customer = {**customer, "currency": plan["amount_currency"]}
        elif customer["currency"] != plan["amount_currency"] and self._tables.world.settings.lago_currency_locked:
            raise invalid({"currency": ["currencies_does_not_match"]})
        self._tables.customers.put(customer["lago_id"], customer)
        return customer

    def _current(self, lago_customer_id: str, external_id: str) -> Doc | None:
        rows = [
            row
            for row in self._tables.subscriptions.by("external_id", external_id)
            if row["lago_customer_id"] == lago_customer_id and (row["status"] == "active" or _is_future(row))
        ]
        return next((row for row in rows if row["status"] == "active"), rows[0] if rows else None)

    def _check_free(self, external_id: str) -> None:
        rows = self._tables.subscriptions.by("external_id", external_id)
        if any(row["status"] == "active" for row in rows):
            raise invalid({"external_id": ["value_already_exist"]})

    # --- what happens to rows

    def _begin(self, row: Doc) -> Doc:
        """Today or earlier: active at once; later: it waits."""
        starts, now = row["subscription_at"], self._tables.now()
        if _day(starts) > _day(now):
            self._save(row)
            return row
        return self._activate(row, "subscription_create", started_at=min(starts, now))

    def _activate(self, row: Doc, reason: str, started_at: float | None = None) -> Doc:
        now = self._tables.now()
        plan = self._tables.plan_of(row)
        begun, ends = self._period(row, plan, now)
        started = now if started_at is None else started_at
        row = {**row, "status": "active", "started_at": started, "activated_at": now}
        row |= {"period_start": max(begun, started), "period_end": ends}
        self._save(row)
        if plan["pay_in_advance"]:
            self._charge(row, plan["amount_cents"], reason)
        self._tell("subscription.started", row)
        return row

    def _upgrade(self, current: Doc, plan: Doc, sent: Doc) -> Doc:
        self._cancel_pending(current)
        old_plan = self._tables.plan_of(current)
        self._replaced(current)
        if old_plan["pay_in_advance"]:
            self._charge(current, -old_plan["amount_cents"], "upgrade_credit")
        else:
            self._charge(current, old_plan["amount_cents"], "termination_invoice")
        return self._activate(self._successor(current, plan, sent), "upgrade")

    def _downgrade(self, current: Doc, plan: Doc, sent: Doc) -> Doc:
        self._cancel_pending(current)
        self._save(self._successor(current, plan, sent))
        self._tell("subscription.updated", current)
        return current

    def _replaced(self, row: Doc) -> None:
        """By its successor, which begins now."""
        row = {**row, "status": "terminated", "terminated_at": self._tables.now()}
        self._save(row)
        self._tell("subscription.terminated", row)

    def _successor(self, current: Doc, plan: Doc, sent: Doc) -> Doc:
        """Keeps dates and billing time; the name only when it is sent again (lago.md 5.1)."""
        row = _blank(current["lago_customer_id"], plan, current["external_id"], self._tables.now(), sent)
        kept = ("subscription_at", "billing_time", "on_termination_credit_note", "on_termination_invoice")
        row |= {name: current[name] for name in kept}
        row["name"] = sent.get("name") or ""
        ends = sent.get("ending_at")
        row["ending_at"] = moment("ending_at", ends) if "ending_at" in sent else current["ending_at"]
        row["previous"] = current["lago_id"]
        return row

    def _cancel_pending(self, current: Doc) -> None:
        for row in self._tables.subscriptions.by("previous", current["lago_id"]):
            if row["status"] == "pending":
                self._cancel(row)

    def _cancel(self, row: Doc) -> Doc:
        row = {**row, "status": "canceled", "canceled_at": self._tables.now()}
        self._save(row)
        self._tell("subscription.terminated", row)
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        if previous is not None and previous["status"] == "active":
            self._tell("subscription.updated", previous)
        return row

    def _terminate(self, row: Doc) -> Doc:
        plan = self._tables.plan_of(row)
        row = {**row, "status": "terminated", "terminated_at": self._tables.now()}
        self._save(row)
        if plan["pay_in_advance"]:
            if (row["on_termination_credit_note"] or "credit") != "skip":
                self._charge(row, -plan["amount_cents"], "termination_credit")
        elif row["on_termination_invoice"] == "generate":
            self._charge(row, plan["amount_cents"], "termination_invoice")
        self._tell("subscription.terminated", row)
        return row

    def _tick(self, row: Doc, when: float) -> None:
        if row["status"] == "pending":
            self._activate(row, "subscription_create")
        elif row["ending_at"] is not None and row["ending_at"] <= when:
            self._cancel_pending(row)
            self._terminate(row)
        else:
            self._next_period(row)

    def _next_period(self, row: Doc) -> None:
        """A period ended: what is owed for it is charged, then a pending downgrade takes over, or the plan renews."""
        plan = self._tables.plan_of(row)
        if not plan["pay_in_advance"]:
            self._charge(row, plan["amount_cents"], "renewal")
        for successor in self._tables.subscriptions.by("previous", row["lago_id"]):
            if successor["status"] == "pending":
                self._replaced(row)
                self._activate(successor, "downgrade")
                return
        begun, ends = self._period(row, plan, self._tables.now())
        self._save({**row, "period_start": begun, "period_end": ends})
        if plan["pay_in_advance"]:
            self._charge(row, plan["amount_cents"], "renewal")

    @staticmethod
    def _period(row: Doc, plan: Doc, when: float) -> tuple[float, float]:
        return period(
            interval=plan["interval"],
            billing_time=row["billing_time"],
            subscription_at=row["subscription_at"],
            moment=when,
        )

    def _charge(self, row: Doc, amount: int, reason: str) -> None:
        customer = self._tables.customers.get(row["lago_customer_id"])
        self._tables.world.ledger.charge(
            "lago",
            customer=customer["external_id"] if customer else "",
            subscription=row["external_id"],
            amount=amount,
            currency=self._tables.plan_of(row)["amount_currency"],
            reason=reason,
        )

    def _tell(self, kind: str, row: Doc) -> None:
        def document() -> Doc:
            customer = self._tables.customers.get(row["lago_customer_id"])
            theirs = shown_customer(customer) if customer is not None else None
            return {**self._answer(row)["subscription"], "customer": theirs}

        self._tables.tell(kind, "subscription", document)

    def _save(self, row: Doc) -> None:
        self._tables.subscriptions.put(row["lago_id"], row)

    def _latest(self, external_id: str, status: str) -> Doc:
        rows = [row for row in self._tables.subscriptions.by("external_id", external_id) if row["status"] == status]
        if not rows:
            raise not_found("subscription_not_found")
        return max(rows, key=lambda row: float(row["created_at"]))

    # --- as Lago shows it

    def _answer(self, row: Doc) -> Doc:
        plan = plans.shown(self._tables.plan_of(row))
        return {"subscription": {**self.shown(row), "plan": plan, "entitlements": [], **_DETAILS}}

    def shown(self, row: Doc) -> Doc:
        plan = self._tables.plan_of(row)
        customer = self._tables.customers.get(row["lago_customer_id"])
        previous = self._tables.subscriptions.get(row["previous"]) if row["previous"] else None
        following = self._following(row)
        scheduled = following is not None and following["status"] == "pending"
        active = row["status"] == "active"
        return {
            "lago_id": row["lago_id"],
            "external_id": row["external_id"],
            "lago_customer_id": row["lago_customer_id"],
            "external_customer_id": customer["external_id"] if customer else None,
            "billing_entity_code": "sandbox",
            "name": row["name"],
            "plan_code": plan["code"],
            "plan_amount_cents": plan["amount_cents"],
            "plan_amount_currency": plan["amount_currency"],
            "status": row["status"],
            "billing_time": row["billing_time"],
            "subscription_at": stamp(row["subscription_at"]),
            "started_at": fine_stamp(row["started_at"]),
            "trial_ended_at": None,
            "ending_at": stamp(row["ending_at"]),
            "terminated_at": stamp(row["terminated_at"]),
            "canceled_at": stamp(row["canceled_at"]),
            "created_at": stamp(row["created_at"]),
            "previous_plan_code": self._tables.plan_of(previous)["code"] if previous else None,
            "next_plan_code": self._tables.plan_of(following)["code"] if following else None,
            "downgrade_plan_date": str(stamp(row["period_end"]))[:10] if scheduled and active else None,
            "current_billing_period_started_at": stamp(row["period_start"]) if active else None,
            "current_billing_period_ending_at": stamp(row["period_end"] - 1) if active else None,
            "on_termination_credit_note": row["on_termination_credit_note"],
            "on_termination_invoice": row["on_termination_invoice"],
            "progressive_billing_disabled": False,
            "consolidate_invoice": True,
            "purchase_order_number": None,
            "cancellation_reason": None,
            "activated_at": stamp(row["activated_at"]),
            "payment_method": {"payment_method_id": None, "payment_method_type": "provider"},
            "activation_rules": [],
        }

    def _following(self, row: Doc) -> Doc | None:
        rows = [
            each for each in self._tables.subscriptions.by("previous", row["lago_id"]) if each["status"] != "canceled"
        ]
        return max(rows, key=lambda each: float(each["created_at"]), default=None)


_DETAILS: Doc = {"applicable_usage_thresholds": [], "applied_invoice_custom_sections": []}


def _blank(lago_customer_id: str, plan: Doc, external_id: str, now: float, sent: Doc) -> Doc:
    return {
        "lago_id": new_id(),
        "external_id": external_id,
        "lago_customer_id": lago_customer_id,
        "plan": plan["lago_id"],
        "previous": None,
        "name": sent.get("name"),
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
        "on_termination_credit_note": None,
        "on_termination_invoice": "generate",
    }


def _due(row: Doc) -> float | None:
    if row["status"] == "active":
        return float(min(row["period_end"], row["ending_at"] or row["period_end"]))
    return float(row["subscription_at"]) if _is_future(row) else None


def _is_future(row: Doc) -> bool:
    """Pending without a predecessor: it starts in the future; with one it is a scheduled downgrade."""
    return bool(row["status"] == "pending" and row["previous"] is None)


def _day(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _allowed(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise invalid({name: ["invalid_value"]})
    return value
