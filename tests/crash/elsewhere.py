"""What no recorded run comes by, and the test that does: ``path::test``, checked to be there."""

from __future__ import annotations

from typing import Final

# Modules and functions none of whose calls is made for a change of an organization.
WHOLE: Final[dict[str, str]] = {
    # A person's or service's change in one transaction, by the same functions as a message's.
    "core.org_manager": "tests/core/test_org_manager.py",
    # They read; what they find is repaired by the usual rounds.
    "tasks.drift": "tests/worker/cli/test_drift.py",
    "providers.lago.state_reader": "tests/core/drift",
    "providers.lago.usage_and_preview": "tests/api/routes/test_plan_preview.py",
    "providers.stripe.invoice_preview": "tests/api/routes/test_plan_preview.py",
    "providers.stripe.state_reader": "tests/core/drift",
    # People are told; what it leaves undone waits in the mails' own rows.
    "core.emails.sender": "tests/core/emails/test_sender.py",
    "tasks.emails": "tests/core/emails/test_sender.py",
    # Other services are told; nothing of an organization hangs on it.
    "core.webhooks.dispatcher": "tests/core/webhooks/test_dispatcher.py",
    "tasks.webhook_deliveries": "tests/scenarios/test_webhook_deliveries.py",
    # Webhooks of the billers cause looks, which write nothing there; a hint that is lost on the way comes due again.
    "core.inbox.provider_webhooks": "tests/core/inbox/test_provider_webhooks.py",
    "tasks.provider_webhooks": "tests/scenarios/test_provider_webhooks.py",
    # Whose key it is, asked when a process starts.
    "core.reconcile.account_guard:AccountGuard.confirm": "tests/core/reconcile/test_account_guard.py",
    "core.reconcile.account_guard:AccountGuard.start": "tests/core/reconcile/test_account_guard.py",
    "providers.stripe.provider": "tests/providers/stripe/test_customers.py",
}

_CUSTOMERS: Final = "tests/providers/lago/test_customers.py"
_WEBHOOKS: Final = "tests/core/inbox/test_provider_webhooks.py"
_LINKS: Final = "tests/core/reconcile/test_lease.py"
_STRIPE: Final = "tests/providers/stripe/test_subscriptions.py"
_SYNC: Final = "tests/core/reconcile/test_reconciler.py"

SITES: Final[dict[str, str]] = {
    # Two workers at one link: whoever comes late.
    "core.reconcile.outcomes:release": (
        f"{_LINKS}::test_a_turn_that_lost_the_link_before_it_sent_anything_frees_it_at_once"
    ),
    "core.reconcile.outcomes:invalidate_after_lost_lease": (
        f"{_SYNC}::test_a_late_turn_that_lost_its_lease_changes_nothing_and_has_everything_made_again"
    ),
    # A lease that would not outlast the next call; no call here takes that long.
    "core.reconcile.attempt:SyncAttempt.before_request": (
        f"{_LINKS}::test_a_lease_outlasts_each_call_and_costs_no_write_before_it_must"
    ),
    # A key of another account: nothing is sent.
    "core.reconcile.outcomes:trip_wrong_account": (
        "tests/core/reconcile/test_account_guard.py"
        "::test_a_worker_that_could_not_ask_and_has_another_accounts_key_stops_the_biller_and_sends_nothing"
    ),
    # A look after a webhook.
    "core.reconcile.attempt:SyncAttempt.mark_remote_changed": (
        f"{_WEBHOOKS}::test_a_customer_deleted_in_stripe_parks_the_link_with_the_way_out"
    ),
    "core.reconcile.attempt:SyncAttempt.invalidate_plan": (
        f"{_WEBHOOKS}::test_a_downgrade_that_took_effect_settles_the_plan"
    ),
    "worker.processes.relay:Relay._dispatch_provider_webhooks": (
        "tests/scenarios/test_provider_webhooks.py::test_a_customer_deleted_in_stripe_ends_parked_with_a_sentence"
    ),
    # A database or a broker that is away, not a process that dies.
    "tasks.base:BillingTask.retry_in": (
        "tests/scenarios/test_deployment.py::test_a_message_that_meets_a_database_that_is_away_comes_again"
    ),
    "worker.processes.relay:Relay._relay_events#2": (
        "tests/worker/processes/test_relay.py::test_what_a_broker_that_is_away_did_not_take_is_pending_again_at_once"
    ),
    # An import brings the organization that messages wait for.
    "core.inbox.service_events:_apply_waiting_in_transaction": (
        "tests/core/predecessor/test_importing.py"
        "::test_what_is_said_while_its_organization_is_being_imported_is_not_left_waiting"
    ),
    # Customers that were there before us.
    "providers.lago.customers:LagoCustomers._find": f"{_CUSTOMERS}::test_imported_id_is_read_before_it_is_written",
    "providers.lago.customers:LagoCustomers._refuse_other_subscriptions": (
        f"{_CUSTOMERS}::test_customer_that_was_there_before_us_is_checked_for_subscriptions"
    ),
    # A restored database; no run here goes back in time.
    "providers.stripe.customers:StripeCustomers._find_lost_in_restore": (
        "tests/scenarios/test_double_charging.py::test_a_restored_database_finds_the_customer_that_it_forgot"
    ),
    # `billing-sync plans push`: a person's command, repeated by the person.
    "providers.lago.provider:LagoProvider.create_price": (
        "tests/providers/lago/test_subscriptions.py::test_plan_is_added_in_advance_and_once"
    ),
    "providers.lago.provider:LagoProvider.find_price": (
        "tests/providers/lago/test_subscriptions.py::test_plan_is_added_in_advance_and_once"
    ),
    "providers.stripe.prices:StripePrices._create_product": (
        f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once"
    ),
    "providers.stripe.prices:StripePrices._has_product": f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once",
    "providers.stripe.prices:StripePrices.create_price": f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once",
}
