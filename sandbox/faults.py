"""The fault plan: what goes wrong with which call, and how often.

A fault is taken by the first call that fits it, after the key and the rate limit were looked at. ``skip`` calls pass
first; after ``times`` it is spent (0: it stays). Kinds:

=================  =====================================================================================
``500_before``     500, nothing done; Stripe does not store it under the key
``500_stored``     500, nothing done, and Stripe stores it: the key answers 500 from now on
``500_after``      done, yet answered 500 (Stripe stores it)
``lost_answer``    done and stored, the connection dropped without an answer
``reset``          the connection reset before anything is done
``hang``           silent for ``seconds``, nothing done, then closed
``slow``           ``seconds`` late, then as usual; meanwhile Stripe holds the idempotency key
``drip``           as usual, but the answer arrives byte by byte over ``seconds``
``429``            ``reason`` (Stripe-Rate-Limited-Reason), ``retry_after`` seconds, ``headers`` false: none
``lock_timeout``   Stripe: 429 with code lock_timeout and Stripe-Should-Retry: true
``html_502``       a proxy's page, nothing done
``401``            as if the key were revoked
``422_third_party``  Lago: done, then 422 third_party_error
``status``         any ``status`` with any ``body``, nothing done
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
        """Raises ValueError with a sentence that names the field."""
        fault = _validated(sent)
        if len(self._faults) >= MAX_FAULTS:
            raise InvalidControlRequestError("faults", f"At most {MAX_FAULTS} faults are kept; clear some first.")
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
            "kind", f"There is no fault kind {fault.kind!r}; there are {', '.join(sorted(FAULT_KINDS))}."
        )
    if fault.provider not in ("stripe", "lago", "*"):
        raise InvalidControlRequestError("provider", f"Field 'provider' is stripe, lago or *, not {fault.provider!r}.")
    for number in (fault.times, fault.skip, fault.seconds, fault.status):
        if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
            raise InvalidControlRequestError("times", "Fields times, skip, seconds and status take numbers from 0.")
    if fault.seconds > MAX_FAULT_SECONDS:
        raise InvalidControlRequestError("seconds", f"Field 'seconds' is at most {MAX_FAULT_SECONDS:.0f}.")
    return fault
