"""A failed call to Lago in the terms of the failure table: status, codes and ids.

Texts that Lago or Stripe wrote are never passed on, because they can contain a name or an email address. Source:
lago.md 1.1, 3.5, 5.1, 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from providers.transport.failure_table import Failure
from providers.transport.transport_errors import classify

# A longer wait is a time in epoch seconds, or a mistake: Lago's window is one second.
MAX_RETRY_AFTER_SECONDS = 600.0

_LAGO_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_STRIPE_ID = re.compile(r"\b(?:cus|pm|acct|req)_[A-Za-z0-9]{1,60}\b")
_MAX_CODES = 20


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There was no response, or it could not be read to its end."""

    error: httpx.RequestError

    @property
    def codes(self) -> tuple[str, ...]:
        return (classify(self.error),)

    def to_failure(self, context: str) -> Failure:
        # The system's own text for a connection that failed. Other texts of httpx may quote the response.
        reason = f": {self.error}" if isinstance(self.error, httpx.ConnectError) else ""
        return failure_with_code(context, self.codes[0], f"{type(self.error).__name__}{reason}")


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is not a success, with its true status. ``body`` is None if it was not JSON."""

    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[str, ...]:
        """Lago's code, then each ``field:code``. A text in place of a code becomes ``field:text``."""
        if not isinstance(self.body, Mapping):
            return ()
        codes = [code] if (code := valid_code(self.body.get("code"))) else []
        if str(self.body.get("error", "")).startswith("Stripe authentication failed"):
            codes.append("stripe_authentication_failed")
        details = self.body.get("error_details")
        if isinstance(details, Mapping):
            for name, field_codes in details.items():
                if isinstance(field_codes, list):
                    codes += [f"{valid_code(name) or 'field'}:{valid_code(code) or 'text'}" for code in field_codes]
        return tuple(codes[:_MAX_CODES])

    def to_failure(self, context: str) -> Failure:
        codes = self.codes
        fallback_code = "foreign" if self.body is None else "no_code"
        bare_codes = tuple(code.partition(":")[2] for code in codes if ":" in code)
        shown_codes = codes or (("not JSON",) if self.body is None else ())
        return Failure(
            provider="lago",
            context=context,
            codes=(*codes, *bare_codes) or (fallback_code,),
            details=" ".join([str(self.status), *shown_codes, *self._stripe_ids()]),
            status=self.status,
            code=codes[0] if codes else None,
            request_id=valid_code(self.headers.get("x-request-id")),
            retry_after=self._retry_after(),
        )

    def _stripe_ids(self) -> list[str]:
        """Only the ids in Stripe's text, for example that of a customer which Stripe does not have."""
        details = self.body.get("error_details") if isinstance(self.body, Mapping) else None
        text = details.get("thirdparty_error") if isinstance(details, Mapping) else None
        return _STRIPE_ID.findall(str(text))[:3] if text else []

    def _retry_after(self) -> float | None:
        for header in ("x-ratelimit-reset", "retry-after"):
            try:
                seconds = float(self.headers.get(header, ""))
            except ValueError:
                continue
            if 0 <= seconds <= MAX_RETRY_AFTER_SECONDS:
                return seconds
        return None


def failure_with_code(context: str, code: str, details: str, status: int | None = None) -> Failure:
    """A failure for which only we have a code."""
    return Failure(provider="lago", context=context, codes=(code,), details=details, status=status, code=code)


def valid_code(value: object) -> str | None:
    """Codes and ids are shown and stored, so what looks like neither is dropped."""
    return value if isinstance(value, str) and _LAGO_CODE.fullmatch(value) else None
