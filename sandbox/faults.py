"""The fault plan: what goes wrong with which call, and how often.

A fault is taken by the first call that fits it, after the key and the rate limit were looked at. ``skip`` calls pass
first; after ``times`` it is spent (0: it stays). Kinds:

=================  =====================================================================================
``500_before``     500, nothing done; Stripe does not store it under the key
``500_stored``     500, nothing done, and Stripe stores it: the key answers 500 from now on
``500_parse_cursor``      done, yet answered 500 (Stripe stores it)
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

from sandbox.http import Doc, Request, WrongRequestError

KINDS = frozenset(
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
MOST_FAULTS = 1000
LONGEST_SECONDS = 600.0


@dataclass(slots=True)
class Fault:
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
    taken: int = field(default=0)

    def fits(self, request: Request) -> bool:
        return (
            self.provider in ("*", request.provider)
            and self.operation in ("*", request.operation)
            and (not self.match or self.match in request.raw)
        )


class FaultPlan:
    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._last = 0

    def add(self, wanted: Doc) -> int:
        """Raises ValueError with a sentence that names the field."""
        fault = _checked(wanted)
        if len(self._faults) >= MOST_FAULTS:
            raise WrongRequestError("faults", f"At most {MOST_FAULTS} faults are kept; clear some first.")
        self._last += 1
        fault.id = self._last
        self._faults[fault.id] = fault
        return fault.id

    def take(self, request: Request) -> Fault | None:
        for fault in self._faults.values():
            if not fault.fits(request):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.taken += 1
            if fault.taken == fault.times:
                del self._faults[fault.id]
            return fault
        return None

    def waiting(self) -> list[Fault]:
        return list(self._faults.values())

    def remove(self, fault_id: int) -> bool:
        return self._faults.pop(fault_id, None) is not None

    def clear(self) -> None:
        self._faults.clear()


def _checked(wanted: Doc) -> Fault:
    allowed = {each.name for each in fields(Fault)} - {"id", "taken"}
    if unknown := sorted(set(wanted) - allowed):
        raise WrongRequestError("fields", f"A fault has no field {unknown[0]!r}; it has {', '.join(sorted(allowed))}.")
    for name in ("provider", "operation", "kind"):
        if not isinstance(wanted.get(name), str):
            raise WrongRequestError(name, f"A fault needs the field {name!r} as text.")
    fault = Fault(**wanted)
    if fault.kind not in KINDS:
        raise WrongRequestError("kind", f"There is no fault kind {fault.kind!r}; there are {', '.join(sorted(KINDS))}.")
    if fault.provider not in ("stripe", "lago", "*"):
        raise WrongRequestError("provider", f"Field 'provider' is stripe, lago or *, not {fault.provider!r}.")
    for number in (fault.times, fault.skip, fault.seconds, fault.status):
        if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
            raise WrongRequestError("times", "Fields times, skip, seconds and status take numbers from 0.")
    if fault.seconds > LONGEST_SECONDS:
        raise WrongRequestError("seconds", f"Field 'seconds' is at most {LONGEST_SECONDS:.0f}.")
    return fault
