"""A Lago that does not do what was asked, as the table of failures wants it: status, words, ids.

The texts that Lago or Stripe wrote are never passed on: they can hold a name or an email. Source: lago.md 1.1, 3.5,
5.1, 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from providers.transport.failure_table import Failure
from providers.transport.transport_errors import silence

LONGEST_WAIT = 600.0  # seconds; a longer wish is a moment in epoch seconds or a mistake (Lago's window is one second)

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_STRIPE_ID = re.compile(r"\b(?:cus|pm|acct|req)_[A-Za-z0-9]{1,60}\b")
_MOST_WORDS = 20


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer, or none that could be read to its end."""

    error: httpx.RequestError

    @property
    def words(self) -> tuple[str, ...]:
        return (silence(self.error),)

    def failure(self, about: str) -> Failure:
        # What the system says of a connection that was never made; httpx's other texts may quote the answer.
        why = f": {self.error}" if isinstance(self.error, httpx.ConnectError) else ""
        return failed(about, self.words[0], f"{type(self.error).__name__}{why}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success, under its true status. ``body`` is None where it was not JSON."""

    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """Lago's code, then each ``field:code``; a text in place of a code becomes ``field:text``."""
        if not isinstance(self.body, Mapping):
            return ()
        words = [code] if (code := _word(self.body.get("code"))) else []
        if str(self.body.get("error", "")).startswith("Stripe authentication failed"):
            words.append("stripe_authentication_failed")
        details = self.body.get("error_details")
        if isinstance(details, Mapping):
            for name, codes in details.items():
                if isinstance(codes, list):
                    words += [f"{_word(name) or 'field'}:{_word(code) or 'text'}" for code in codes]
        return tuple(words[:_MOST_WORDS])

    def failure(self, about: str) -> Failure:
        words = self.words
        without = "foreign" if self.body is None else "no_code"
        codes = tuple(word.partition(":")[2] for word in words if ":" in word)
        shown = words or (("not JSON",) if self.body is None else ())
        return Failure(
            provider="lago",
            about=about,
            words=(*words, *codes) or (without,),
            seen=" ".join([str(self.status), *shown, *self._stripe_ids()]),
            status=self.status,
            code=words[0] if words else None,
            request_id=_word(self.headers.get("x-request-id")),
            retry_after=self._retry_after(),
        )

    def _stripe_ids(self) -> list[str]:
        """From Stripe's text only the ids, e.g. the customer that it does not know."""
        details = self.body.get("error_details") if isinstance(self.body, Mapping) else None
        text = details.get("thirdparty_error") if isinstance(details, Mapping) else None
        return _STRIPE_ID.findall(str(text))[:3] if text else []

    def _retry_after(self) -> float | None:
        for header in ("x-ratelimit-reset", "retry-after"):
            try:
                seconds = float(self.headers.get(header, ""))
            except ValueError:
                continue
            if 0 <= seconds <= LONGEST_WAIT:
                return seconds
        return None


def failed(about: str, word: str, seen: str, status: int | None = None) -> Failure:
    """A failure for which we have the only word."""
    return Failure(provider="lago", about=about, words=(word,), seen=seen, status=status, code=word)


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
