"""The providers' rate limits. They use real time, since the sandbox's clock may jump."""

import time


class TokenBucket:
    """A token bucket that starts full: ``rate`` requests a second, and at most ``rate`` at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._filled_at = time.monotonic()

    def try_acquire(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class FixedWindow:
    """A fixed window of one second, as Lago Cloud's headers describe it (lago.md 2)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._second = 0
        self._used = 0

    def try_acquire(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._used = second, 0
        self._used += 1
        return self._used <= self.limit

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self._used)
