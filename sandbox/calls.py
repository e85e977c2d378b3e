"""Log of the requests to the simulated providers: the last calls in full, and counts of all."""

from collections import Counter, deque

from sandbox.http import JsonDocument

MAX_LOGGED_CALLS = 20_000  # stored in full; the counters count all


class CallLog:
    def __init__(self) -> None:
        self._calls: deque[JsonDocument] = deque(maxlen=MAX_LOGGED_CALLS)
        self._operation_counts: Counter[tuple[str, str]] = Counter()
        self._status_counts: Counter[tuple[str, str]] = Counter()
        self._last_number = 0

    def add(self, call: JsonDocument) -> None:
        self._last_number += 1
        self._calls.append({"number": self._last_number, **call})
        provider = str(call["provider"])
        self._operation_counts[provider, str(call["operation"])] += 1
        self._status_counts[provider, "dropped" if call["status"] is None else str(call["status"])] += 1

    def calls(self, provider: str | None = None) -> list[JsonDocument]:
        return [call for call in self._calls if provider in (None, call["provider"])]

    def counters(self) -> JsonDocument:
        """``{"stripe": {"total": n, "operations": {…}, "statuses": {…}}, "lago": …}``"""
        return {
            provider: {
                "total": sum(
                    count
                    for (counted_provider, _), count in self._operation_counts.items()
                    if counted_provider == provider
                ),
                "operations": {
                    name: count
                    for (counted_provider, name), count in self._operation_counts.items()
                    if counted_provider == provider
                },
                "statuses": {
                    name: count
                    for (counted_provider, name), count in self._status_counts.items()
                    if counted_provider == provider
                },
            }
            for provider in ("stripe", "lago")
        }

    def clear(self) -> None:
        self._calls.clear()
        self._operation_counts.clear()
        self._status_counts.clear()
        self._last_number = 0
