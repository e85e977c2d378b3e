"""Schemathesis hook that sets what must not be random in generated requests: the idempotency key and the wait."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, HookContext

GOOD_KEY = re.compile(r"[!-~]{1,255}")
GOOD_WAIT = re.compile(r"([0-9]|[12][0-9]|30)s?")


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - the hook's own form
    """Give each request its own idempotency key, and do not wait for providers that do not exist."""
    if GOOD_KEY.fullmatch(str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = uuid4().hex
    if GOOD_WAIT.fullmatch(str(case.query.get("wait", ""))):
        case.query["wait"] = "0s"
