"""Takes the payer of a Lago customer out, so that Lago charges nobody.

Only an explicit null does it (lago.md 3.5), and with it Lago forgets the payment methods. An invoice whose payment has
not begun is then never paid. Lago makes the last one, and collects it, in jobs after the end of the subscription.
"""

from __future__ import annotations

from typing import Final

from lago_python_client.models.customer import CustomerResponse

from core.ports.errors import NotYetAllowedError, RejectedError
from core.ports.planned import PlannedStep
from core.ports.provider import AttemptContext
from core.ports.spec import LastKnown
from providers.lago.client import LagoClient, LagoRequest
from providers.lago.state_reader import LagoInvoiceState
from providers.transport.safe_ids import printable

# Between two looks at an invoice that Lago still collects.
COLLECTION_POLL_SECONDS: Final = 60.0
_NO_PAYER: Final = {"payment_provider": None}


class LagoPayers:
    def __init__(self, client: LagoClient) -> None:
        self._client = client

    def remove(self, last_known: LastKnown, org_id: str, attempt: AttemptContext, *, collects: bool) -> None:
        """Reads first: another payer than ours is never taken out, and none that is left is no error."""
        external_id = last_known.external_ids.customer_of(org_id)
        found = self._client.send_or_none("customer_not_found", self._read(org_id, external_id), attempt)
        if found is None:
            return  # Nobody can be charged for a customer that was deleted. The next attempt says that it was.
        if found.external_id != external_id or found.lago_id != last_known.customer_id:
            raise _rejection(org_id, f"{printable(last_known.customer_id)} is no longer its customer in Lago")
        payer = _payer_id(found)
        if payer is None:
            return
        if payer != last_known.payer_id:
            sentence = (
                f"Lago charges {printable(payer)} now, which billing-sync did not set: take that payer out in Lago"
            )
            raise RejectedError(
                "lago", f"customer {org_id}: {sentence}, then run `billing-sync retry {org_id}`", "payer_is_not_ours"
            )
        if collects:
            self._refuse_unpaid(org_id, found, attempt)
        attempt.before_change(lambda: [PlannedStep(kind="set_payer", object_id=found.lago_id, before=payer)])
        request = LagoRequest(
            context=f"customer {org_id}",
            method="POST",
            path=("customers",),
            root="customer",
            response_type=CustomerResponse,
            document={"external_id": external_id, "billing_configuration": _NO_PAYER},
        )
        left = _payer_id(self._client.send(request, attempt))
        if left is not None:
            raise _rejection(org_id, f"Lago still charges {printable(left)} after the request to take the payer out")

    def _refuse_unpaid(self, org_id: str, found: CustomerResponse, attempt: AttemptContext) -> None:
        request = LagoRequest(
            context=f"invoices of customer {org_id}",
            method="GET",
            path=("invoices",),
            root="invoices",
            response_type=LagoInvoiceState,
            params={
                "external_customer_id": found.external_id,
                "statuses[]": ["draft", "finalized"],
                "payment_statuses[]": ["pending"],
                "per_page": "100",
            },
        )
        rows, _ = self._client.list_page(request, attempt)
        unpaid = [row for row in rows if _is_unpaid(row, found.lago_id)]
        if unpaid:
            message = f"customer {org_id}: Lago still collects the invoice {printable(unpaid[0].lago_id)}"
            raise NotYetAllowedError("lago", message, "last_invoice_unpaid", retry_after=COLLECTION_POLL_SECONDS)

    @staticmethod
    def _read(org_id: str, external_id: str) -> LagoRequest[CustomerResponse]:
        return LagoRequest(
            context=f"customer {org_id}",
            method="GET",
            path=("customers", external_id),
            root="customer",
            response_type=CustomerResponse,
        )


def _is_unpaid(row: LagoInvoiceState, lago_id: str) -> bool:
    """A version of Lago that does not know a filter ignores it, and Lago lists those of a deleted customer, too."""
    is_its = row.customer is None or row.customer.lago_id == lago_id
    is_due = row.total_due_amount_cents is None or row.total_due_amount_cents > 0
    return is_its and is_due and row.payment_status == "pending" and row.status in {"draft", "finalized"}


def _payer_id(customer: CustomerResponse) -> str | None:
    configuration = customer.billing_configuration
    return configuration.provider_customer_id if configuration else None


def _rejection(org_id: str, sentence: str) -> RejectedError:
    return RejectedError("lago", f"customer {org_id}: {sentence}; check Lago, then run `billing-sync retry {org_id}`")
