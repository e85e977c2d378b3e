"""The fault plan: which calls fail, in which way and how often.

The first call that matches a fault gets it, after the API key and the rate limit are checked. The first ``skip``
matching calls pass. The fault is used up after ``times`` calls, or never if ``times`` is 0. Kinds:

=================  =====================================================================================
``500_before``     500 and nothing is done; Stripe does not store it under the idempotency key
``500_stored``     500 and nothing is done; Stripe stores it, so each retry with the key gets 500
``500_after``      the request is done, but the response is 500 (Stripe stores it)
``lost_answer``    the request is done and stored, then the connection is dropped without a response
``reset``          the connection is reset before anything is done
``hang``           no response for ``seconds``, nothing is done, then the connection is closed
``slow``           as usual, but ``seconds`` late; meanwhile Stripe has the idempotency key in use
``drip``           as usual, but the response arrives byte by byte over ``seconds``
``429``            ``reason`` (Stripe-Rate-Limited-Reason), ``retry_after`` seconds, ``headers`` false: none
``lock_timeout``   Stripe: 429 with code lock_timeout and Stripe-Should-Retry: true
``html_502``       a proxy's HTML page, and nothing is done
``401``            as if the API key were revoked
``403``            Stripe: as if the restricted key lacked the right ``reason`` (``rak_credit_note_write``)
``422_third_party``  Lago: the request is done, then 422 third_party_error
``status``         any ``status`` with any ``body``, and nothing is done
=================  =====================================================================================
"""

from dataclasses import dataclass, field, fields

from sandbox.http import InvalidControlRequestError, JsonDocument, ProviderRequest

FAULT_KINDS = frozenset(
    {
        "500_before",
        "500_stored",
        "500_after",
        "lost_answer",
        "reset",
        "hang",
        "slow",
        "drip",
        "429",
        "lock_timeout",
        "html_502",
        "401",
        "403",
        "422_third_party",
        "status",
    }
)
MAX_FAULTS = 1000
MAX_FAULT_SECONDS = 600.0


@dataclass(slots=True)
class InjectedFault:
    provider: str
    operation: str
    kind: str
    times: int = 1
    skip: int = 0
    match: str = ""
    seconds: float = 1.0
    reason: str = ""
    retry_after: int | None = None
    headers: bool = True
    status: int = 500
    body: str = ""
    id: int = 0
    times_used: int = field(default=0)

    def matches(self, request: ProviderRequest) -> bool:
        return (
            self.provider in ("*", request.provider)
            and self.operation in ("*", request.operation)
            and (not self.match or self.match in request.raw_text)
        )


class FaultPlan:
    def __init__(self) -> None:
        self._faults: dict[int, InjectedFault] = {}
        self._last_id = 0

    def add(self, sent: JsonDocument) -> int:
        """Raises InvalidControlRequestError, which names the field."""
        fault = _validated(sent)
        if len(self._faults) >= MAX_FAULTS:
            raise InvalidControlRequestError("faults", f"At most {MAX_FAULTS} faults can be stored; clear some first.")
        self._last_id += 1
        fault.id = self._last_id
        self._faults[fault.id] = fault
        return fault.id

    def use_next(self, request: ProviderRequest) -> InjectedFault | None:
        for fault in self._faults.values():
            if not fault.matches(request):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times_used += 1
            if fault.times_used == fault.times:
                del self._faults[fault.id]
            return fault
        return None

    def pending(self) -> list[InjectedFault]:
        return list(self._faults.values())

    def remove(self, fault_id: int) -> bool:
        return self._faults.pop(fault_id, None) is not None

    def clear(self) -> None:
        self._faults.clear()


def _validated(sent: JsonDocument) -> InjectedFault:
    allowed = {each.name for each in fields(InjectedFault)} - {"id", "times_used"}
    if unknown := sorted(set(sent) - allowed):
        raise InvalidControlRequestError(
            "fields", f"A fault has no field {unknown[0]!r}; it has {', '.join(sorted(allowed))}."
        )
    for name in ("provider", "operation", "kind"):
        if not isinstance(sent.get(name), str):
            raise InvalidControlRequestError(name, f"A fault needs the field {name!r} as text.")
    fault = InjectedFault(**sent)
    if fault.kind not in FAULT_KINDS:
        raise InvalidControlRequestError(
            "kind", f"There is no fault kind {fault.kind!r}; use one of {', '.join(sorted(FAULT_KINDS))}."
        )
    if fault.provider not in ("stripe", "lago", "*"):
        raise InvalidControlRequestError(
            "provider", f"Field 'provider' must be stripe, lago or *, not {fault.provider!r}."
        )
    for number in (fault.times, fault.skip, fault.seconds, fault.status):
        if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
            raise InvalidControlRequestError("times", "Fields times, skip, seconds and status must be 0 or more.")
    if fault.seconds > MAX_FAULT_SECONDS:
        raise InvalidControlRequestError("seconds", f"Field 'seconds' must be at most {MAX_FAULT_SECONDS:.0f}.")
    return fault
