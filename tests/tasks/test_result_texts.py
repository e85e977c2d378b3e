"""What a sync task says of its end."""

from __future__ import annotations

from typing import get_args

import pytest

from core.reconcile.reconciler import ReconcileResult, WaitCause
from tasks import result_texts


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (
            ReconcileResult(kind="synced", version=7, request_count=1),
            "synced: Stripe has version 7 (1 request)",
        ),
        (
            ReconcileResult(kind="synced", version=7, request_count=2, requeue_after=5.0),
            "synced: Stripe has version 7 (2 requests); the next attempt is in 5 s",
        ),
        (
            ReconcileResult(kind="idle", reason="in_sync", version=7),
            "in sync already: Stripe has version 7; nothing was sent",
        ),
        (
            ReconcileResult(kind="idle", reason="unknown_organization"),
            "nothing was sent: there is no such organization",
        ),
        (ReconcileResult(kind="parked"), "Stripe is parked; nothing was sent; see `billing-sync parked`"),
        (
            ReconcileResult(kind="on_hold", error="stripe: it was deleted"),
            "Stripe is on hold: stripe: it was deleted; see `billing-sync parked`",
        ),
        (
            ReconcileResult(kind="waiting", reason="request", requeue_after=3.2),
            "waits for Stripe: no permit of the rate limiter yet; the next attempt is in 3 s",
        ),
        (
            ReconcileResult(kind="waiting", reason="wrong_account", error="stripe: another account"),
            "stripe: another account",
        ),
        (
            ReconcileResult(kind="retry", error="stripe: no answer", requeue_after=60.0),
            "stripe: no answer; the next attempt is in 60 s",
        ),
        (
            ReconcileResult(kind="observed", version=2, request_count=3),
            "observed: nothing was sent to Stripe; `billing-sync management report` says what would be",
        ),
    ],
)
def test_each_result_is_one_sentence(result: ReconcileResult, text: str) -> None:
    assert result_texts.describe("stripe", result) == text


@pytest.mark.parametrize("reason", sorted(get_args(WaitCause)))
def test_every_cause_of_a_wait_has_a_text(reason: WaitCause) -> None:
    if reason in {"in_sync", "unknown_organization", "parked", "on_hold", "observed"}:
        return  # These end as results of their own.
    text = result_texts.describe("lago", ReconcileResult(kind="waiting", reason=reason))
    assert text.startswith("waits for Lago: ")
    assert "None" not in text
