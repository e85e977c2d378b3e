"""Lago's invoices and their payment status. They are created by hand: the sandbox does not invoice.

A lost dispute leaves the payment status as it is and never goes away; only a voided invoice is out of the list of
finalized ones (lago.md 6). An invoice that nobody pays becomes overdue and stays ``pending``.
"""

from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.lago_api.customers import NOT_IN_OTHER_OBJECTS, NOT_IN_WEBHOOKS, LagoCustomersApi
from sandbox.lago_api.customers import serialize_without as serialize_customer_without
from sandbox.lago_api.serializers import (
    LagoQuery,
    LagoTables,
    format_time,
    format_time_milliseconds,
    new_id,
    paginate,
)

PAYMENT_STATUSES = ("pending", "succeeded", "failed")
NOTHING_HAPPENED: JsonDocument = {
    "status": "finalized",
    "payment_dispute_lost_at": None,
    "payment_overdue": False,
    "voided_at": None,
}
ZERO_AMOUNT_FIELDS = (
    "coupons_amount_cents",
    "credit_notes_amount_cents",
    "taxes_amount_cents",
    "prepaid_credit_amount_cents",
    "progressive_billing_credit_amount_cents",
    "total_offsetted_credit_note_amount_cents",
)


class LagoInvoicesApi:
    def __init__(self, tables: LagoTables, customers: LagoCustomersApi) -> None:
        self._tables = tables
        self._customers = customers

    def list_invoices(self, query: LagoQuery) -> JsonDocument:
        rows = [row for row in self._tables.invoices if _matches(row, query)]
        rows.sort(key=lambda row: (-float(row["created_at"]), str(row["lago_id"])))
        page, meta = paginate(rows, query)
        return {"invoices": [self._serialize_for_list(row) for row in page], "meta": meta}

    def _serialize_for_list(self, row: JsonDocument) -> JsonDocument:
        customer = self._tables.customers.get(row["lago_customer_id"])
        shown = None if customer is None else serialize_customer_without(customer, *NOT_IN_WEBHOOKS)
        return {**serialize(row), "customer": shown, "metadata": [], "applied_taxes": []}

    def create(self, sent: JsonDocument) -> JsonDocument:
        """Create a finalized invoice: ``{"external_customer_id", "payment_status" = "failed", "error_code"}``."""
        customer = self._customers.find_existing(str(sent.get("external_customer_id")))
        row = {
            "lago_id": new_id(),
            "lago_customer_id": customer["lago_id"],
            "external_customer_id": customer["external_id"],
            "payment_status": "pending",
            "number": len(self._tables.invoices) + 1,
            "currency": customer["currency"] or "USD",
            "amount": int(sent.get("amount_cents", 1900)),
            "created_at": self._tables.now(),
            **NOTHING_HAPPENED,
        }
        return self._save_status(row, str(sent.get("payment_status", "failed")), sent.get("error_code"))

    def patch(self, lago_id: str, sent: JsonDocument) -> JsonDocument:
        """Let one thing happen to it: ``{"payment_status": "succeeded"}`` is the result of another payment attempt;
        ``{"payment_dispute_lost": true}``, ``{"payment_overdue": true}`` or ``{"status": "voided"}``.
        """
        row = self._tables.invoices.get(lago_id)
        if row is None:
            raise InvalidControlRequestError("lago_id", f"There is no invoice {lago_id!r}.")
        row = NOTHING_HAPPENED | row
        if sent.get("payment_dispute_lost"):
            return self._lose_dispute(row)
        if sent.get("payment_overdue"):
            return self._become_overdue(row)
        if sent.get("status") == "voided":
            return self._void(row)
        return self._save_status(row, str(sent["payment_status"]), sent.get("error_code"))

    def _lose_dispute(self, row: JsonDocument) -> JsonDocument:
        lost_at = row["payment_dispute_lost_at"] or self._tables.now()
        row = self._save({**row, "payment_dispute_lost_at": lost_at, "payment_overdue": False})
        self._tables.emit(
            "invoice.payment_dispute_lost",
            "payment_dispute_lost",
            row["lago_id"],
            lambda: {"invoice": self._serialize_with_customer(row)},
        )
        return serialize(row)

    def _become_overdue(self, row: JsonDocument) -> JsonDocument:
        """As Lago's clock does some time after the due date."""
        is_paid = row["payment_status"] == "succeeded"
        if row["status"] != "finalized" or is_paid or row["payment_dispute_lost_at"] is not None:
            raise InvalidControlRequestError("payment_overdue", "It is voided, paid or disputed, so it is not overdue.")
        row = self._save({**row, "payment_overdue": True})
        self._tables.emit(
            "invoice.payment_overdue",
            "invoice",
            row["lago_id"],
            lambda: {**self._serialize_with_customer(row), "fees": [], "applied_taxes": []},
        )
        return serialize(row)

    def _void(self, row: JsonDocument) -> JsonDocument:
        if row["status"] != "finalized":
            raise InvalidControlRequestError("status", "Only a finalized invoice can be voided.")
        row = self._save({**row, "status": "voided", "payment_overdue": False, "voided_at": self._tables.now()})
        self._tables.emit(
            "invoice.voided", "invoice", row["lago_id"], lambda: {**self._serialize_with_customer(row), "fees": []}
        )
        return serialize(row)

    def _save(self, row: JsonDocument) -> JsonDocument:
        row = {**row, "updated_at": self._tables.now()}
        self._tables.invoices.put(row["lago_id"], row)
        return row

    def _serialize_with_customer(self, row: JsonDocument) -> JsonDocument:
        customer = self._customers.find_existing(row["external_customer_id"])
        row = self._tables.invoices.get(row["lago_id"]) or row
        return {**serialize(row), "customer": serialize_customer_without(customer, *NOT_IN_OTHER_OBJECTS)}

    def report_payer_error(self, sent: JsonDocument) -> JsonDocument:
        """Lago could not create a customer at its payment provider: ``{"external_customer_id", "error_code"}``."""
        customer = self._customers.find_existing(str(sent.get("external_customer_id")))
        error = self._payment_error(customer, sent.get("error_code"))
        del error["provider_customer_id"]
        self._tables.emit(
            "customer.payment_provider_error", "payment_provider_customer_error", customer["lago_id"], lambda: error
        )
        return error

    def report_payer_created(self, sent: JsonDocument) -> JsonDocument:
        """Lago has created the customer at its payment provider: ``{"external_customer_id"}``."""
        customer = serialize_customer_without(
            self._customers.find_existing(str(sent.get("external_customer_id"))), *NOT_IN_WEBHOOKS
        )
        self._tables.emit("customer.payment_provider_created", "customer", customer["lago_id"], lambda: customer)
        return customer

    def _save_status(self, row: JsonDocument, status: str, error_code: object) -> JsonDocument:
        if status not in PAYMENT_STATUSES:
            raise InvalidControlRequestError(
                "payment_status", f"payment_status must be one of {', '.join(PAYMENT_STATUSES)}."
            )
        is_overdue = row["payment_overdue"] and status != "succeeded"
        row = self._save({**row, "payment_status": status, "payment_overdue": is_overdue})
        customer = self._customers.find_existing(row["external_customer_id"])
        if status == "failed":
            error = {"lago_invoice_id": row["lago_id"], **self._payment_error(customer, error_code)}
            error["error_details"] = {
                "code": error["provider_error"]["error_code"],
                "message": error["provider_error"]["message"],
                "request_id": "req_sandbox",
                "http_status": 402,
                "http_body": {},
            }
            self._tables.emit(
                "invoice.payment_failure", "payment_provider_invoice_payment_error", row["lago_id"], lambda: error
            )
        self._tables.emit(
            "invoice.payment_status_updated",
            "invoice",
            row["lago_id"],
            lambda: {**self._serialize_with_customer(row), "fees": []},
        )
        return serialize(row)

    @staticmethod
    def _payment_error(customer: JsonDocument, code: object) -> JsonDocument:
        return {
            "lago_customer_id": customer["lago_id"],
            "external_customer_id": customer["external_id"],
            "provider_customer_id": customer["provider_customer_id"],
            "payment_provider": "stripe",
            "payment_provider_code": customer["payment_provider_code"],
            "provider_error": {"message": "Your card was declined.", "error_code": code or "card_declined"},
        }


def serialize(row: JsonDocument) -> JsonDocument:
    row = NOTHING_HAPPENED | row
    day = str(format_time(row["created_at"]))[:10]
    return {
        "lago_id": row["lago_id"],
        "billing_entity_code": "sandbox",
        "sequential_id": row["number"],
        "number": f"SAN-0001-{row['number']:03}",
        "issuing_date": day,
        "payment_due_date": day,
        "purchase_order_number": None,
        "payment_dispute_lost_at": format_time_milliseconds(row["payment_dispute_lost_at"]),
        "payment_overdue": row["payment_overdue"],
        "net_payment_term": 0,
        "invoice_type": "subscription",
        "status": row["status"],
        "payment_status": row["payment_status"],
        "currency": row["currency"],
        "fees_amount_cents": row["amount"],
        **dict.fromkeys(ZERO_AMOUNT_FIELDS, 0),
        "sub_total_excluding_taxes_amount_cents": row["amount"],
        "sub_total_including_taxes_amount_cents": row["amount"],
        "total_amount_cents": row["amount"],
        "total_due_amount_cents": 0 if row["payment_status"] == "succeeded" else row["amount"],
        "total_paid_amount_cents": row["amount"] if row["payment_status"] == "succeeded" else 0,
        "prepaid_granted_credit_amount_cents": None,
        "prepaid_purchased_credit_amount_cents": None,
        "file_url": None,
        "xml_url": None,
        "web_url": f"http://lago.sandbox.invalid/sandbox/invoice/{row['lago_id']}/overview",
        "voided_at": format_time(row["voided_at"]),
        "version_number": 4,
        "self_billed": False,
        "created_at": format_time(row["created_at"]),
        "updated_at": format_time(row["updated_at"]),
    }


def _matches(row: JsonDocument, query: LagoQuery) -> bool:
    shown = serialize(row)
    payment_statuses = query.get_list("payment_statuses") or [each for each in [query.get("payment_status")] if each]
    flags = {
        "payment_overdue": shown["payment_overdue"],
        "payment_dispute_lost": shown["payment_dispute_lost_at"] is not None,
    }
    return (
        query.get("external_customer_id") in {None, row["external_customer_id"]}
        and (not payment_statuses or row["payment_status"] in payment_statuses)
        and (not (statuses := query.get_list("statuses")) or shown["status"] in statuses)
        and all(query.get(name) in {None, str(value).lower()} for name, value in flags.items())
    )
