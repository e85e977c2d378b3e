"""Lago's applied coupons: what lowers a customer's invoices. They are made by hand, together with their coupon.

They are listed, and they take nothing off what the sandbox charges.
"""

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import not_found
from sandbox.lago_api.serializers import LagoQuery, LagoTables, format_time, new_id, paginate

APPLIED_COUPON_STATUSES = ("active", "terminated")


class LagoAppliedCouponsApi:
    def __init__(self, tables: LagoTables) -> None:
        self._tables = tables

    def apply(self, sent: JsonDocument) -> JsonDocument:
        """``external_customer_id``, ``coupon_code``, and ``percentage_rate`` or ``amount_cents`` with a currency.

        ``frequency`` is forever if it is not sent; "recurring" has a ``frequency_duration``.
        """
        customer = self._tables.find_customer(str(sent["external_customer_id"]))
        if customer is None:
            raise not_found("customer_not_found")
        duration = sent.get("frequency_duration")
        row: JsonDocument = {
            "lago_id": new_id(),
            "lago_coupon_id": new_id(),
            "coupon_code": sent["coupon_code"],
            "coupon_name": sent.get("coupon_name") or sent["coupon_code"],
            "coupon_status": "active",
            "coupon_deleted_at": None,
            "lago_customer_id": customer["lago_id"],
            "external_customer_id": customer["external_id"],
            "status": "active",
            "amount_cents": sent.get("amount_cents"),
            "amount_cents_remaining": None,
            "amount_currency": sent.get("amount_currency"),
            "percentage_rate": sent.get("percentage_rate"),
            "frequency": sent.get("frequency") or "forever",
            "frequency_duration": duration,
            "frequency_duration_remaining": duration,
            "expiration_at": None,
            "created_at": self._tables.now(),
            "terminated_at": None,
        }
        self._tables.applied_coupons.put(row["lago_id"], row)
        return _serialize(row)

    def list_applied_coupons(self, query: LagoQuery, customer: JsonDocument | None = None) -> JsonDocument:
        """Without a valid ``status`` all are listed."""
        status, codes = query.get("status"), query.get_list("coupon_code")
        external_id = query.get("external_customer_id") if customer is None else customer["external_id"]
        rows = [
            row
            for row in self._tables.applied_coupons
            if (external_id is None or row["external_customer_id"] == external_id)
            and (status not in APPLIED_COUPON_STATUSES or row["status"] == status)
            and (not codes or row["coupon_code"] in codes)
        ]
        rows.sort(key=lambda row: -float(row["created_at"]))
        page, meta = paginate(rows, query)
        return {"applied_coupons": [_serialize(row) for row in page], "meta": meta}


def _serialize(row: JsonDocument) -> JsonDocument:
    return {**row, "created_at": format_time(row["created_at"]), "credits": []}
