"""What was asked of the stand-ins: the last calls in full, and counts of all of them."""

from collections import Counter, deque

from sandbox.http import Doc

KEPT = 20_000  # calls kept in full; the counters go on


class CallLog:
    def __init__(self) -> None:
        self._calls: deque[Doc] = deque(maxlen=KEPT)
        self._operations: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[tuple[str, str]] = Counter()
        self._number = 0

    def add(self, call: Doc) -> None:
        self._number += 1
        self._calls.append({"number": self._number, **call})
        provider = str(call["provider"])
        self._operations[provider, str(call["operation"])] += 1
        self._statuses[provider, "dropped" if call["status"] is None else str(call["status"])] += 1

    def calls(self, provider: str | None = None) -> list[Doc]:
        return [call for call in self._calls if provider in (None, call["provider"])]

    def counters(self) -> Doc:
        """``{"stripe": {"total": n, "operations": {…}, "statuses": {…}}, "lago": …}``"""
        return {
            provider: {
                "total": sum(n for (owner, _), n in self._operations.items() if owner == provider),
                "operations": {name: n for (owner, name), n in self._operations.items() if owner == provider},
                "statuses": {name: n for (owner, name), n in self._statuses.items() if owner == provider},
            }
            for provider in ("stripe", "lago")
        }

    def clear(self) -> None:
        self._calls.clear()
        self._operations.clear()
        self._statuses.clear()
        self._number = 0
