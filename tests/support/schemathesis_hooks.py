"""What the generated requests leave to chance and would make them say nothing: who is meant, which key, how long."""

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
    """A key of its own for each request, and no wait for billers that are not there."""
    if GOOD_KEY.fullmatch(str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = uuid4().hex
    if GOOD_WAIT.fullmatch(str(case.query.get("wait", ""))):
        case.query["wait"] = "0s"
