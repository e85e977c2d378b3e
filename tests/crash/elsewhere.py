"""Places in the code that no recorded run passes, each with the test that covers it (``path::test``).

A test checks that both exist.
"""

from __future__ import annotations

from typing import Final

# Modules and functions that make no call for a change of an organization.
WHOLE: Final[dict[str, str]] = {
    # A change by a user or a service in one transaction, with the same functions as a message.
    "core.org_manager": "tests/core/test_org_manager.py",
    # They only read; what they find is repaired by ordinary reconciles.
    "core.backup.backups": "tests/core/backup/test_backups.py",
    "tasks.backups": "tests/core/backup/test_backups.py",
    "tasks.drift": "tests/worker/cli/test_drift.py",
    "providers.lago.state_reader": "tests/core/drift",
    "providers.lago.usage_and_preview": "tests/api/routes/test_plan_preview.py",
    "providers.stripe.invoice_preview": "tests/api/routes/test_plan_preview.py",
    "providers.stripe.state_reader": "tests/core/drift",
    # They send emails; what was not sent stays queued in its own row.
    "core.emails.sender": "tests/core/emails/test_sender.py",
    "tasks.emails": "tests/core/emails/test_sender.py",
    # They send webhooks to subscribers; no organization depends on them.
    "core.webhooks.dispatcher": "tests/core/webhooks/test_dispatcher.py",
    "tasks.webhook_deliveries": "tests/scenarios/test_webhook_deliveries.py",
    # Provider webhooks cause remote checks, which write nothing at a provider; one that is lost is dispatched again.
    "core.inbox.provider_webhooks": "tests/core/inbox/test_provider_webhooks.py",
    "tasks.provider_webhooks": "tests/scenarios/test_provider_webhooks.py",
    # They only read providers, and store what did not come as a webhook. What a killed run lacks is read again.
    "core.inbox.missed_webhooks": "tests/scenarios/test_missed_webhooks.py",
    "providers.stripe.events": "tests/scenarios/test_missed_webhooks.py",
    "tasks.missed_webhooks": "tests/scenarios/test_missed_webhooks.py",
    # Commands that only read the providers. Killed anywhere, they go on or are repeated with the same result.
    "core.adoption.adopter": "tests/scenarios/test_adoption.py",
    "core.adoption.discovery": "tests/core/adoption/test_discovery.py",
    "providers.lago.inventory": "tests/providers/lago/test_inventory.py",
    "providers.stripe.inventory": "tests/providers/stripe/test_inventory.py",
    # Moves to another price: each step is one transaction, and its state says that it was taken.
    "core.price_moves.applying": "tests/scenarios/test_price_moves.py",
    "core.price_moves.due": "tests/scenarios/test_price_moves.py",
    "core.price_moves.listing": "tests/scenarios/test_price_moves.py",
    # Metadata only, as steps of an organization that was adopted; repeated, they write the same.
    "providers.stripe.marks": "tests/scenarios/test_adopted_in_stripe.py",
    # The account of an API key, which is read when a process starts.
    "core.reconcile.account_guard:AccountGuard.confirm": "tests/core/reconcile/test_account_guard.py",
    "core.reconcile.account_guard:AccountGuard.start": "tests/core/reconcile/test_account_guard.py",
    "providers.stripe.provider": "tests/providers/stripe/test_customers.py",
}

_CUSTOMERS: Final = "tests/providers/lago/test_customers.py"
_WEBHOOKS: Final = "tests/core/inbox/test_provider_webhooks.py"
_LINKS: Final = "tests/core/reconcile/test_lease.py"
_STRIPE: Final = "tests/providers/stripe/test_subscriptions.py"
_COLLECTION: Final = "tests/providers/stripe/test_collection.py"
_SYNC: Final = "tests/core/reconcile/test_reconciler.py"

SITES: Final[dict[str, str]] = {
    # An operator's command in one transaction, which is repeated as a whole.
    "core.inbox.service_events:_replay_in_transaction": (
        "tests/core/inbox/test_service_events.py::test_a_rejected_message_is_applied_by_a_replay_once_its_cause_is_gone"
    ),
    # Two workers at one link: the one that is too late.
    "core.reconcile.outcomes:release": (
        f"{_LINKS}::test_a_turn_that_lost_the_link_before_it_sent_anything_frees_it_at_once"
    ),
    "core.reconcile.outcomes:invalidate_after_lost_lease": (
        f"{_SYNC}::test_a_late_turn_that_lost_its_lease_changes_nothing_and_has_everything_made_again"
    ),
    # A lease that would end before the next call does; no call here takes that long.
    "core.reconcile.attempt:SyncAttempt.before_request": (
        f"{_LINKS}::test_a_lease_outlasts_each_call_and_costs_no_write_before_it_must"
    ),
    # An organization that is observed: nothing is sent.
    "core.reconcile.outcomes:observe": (
        "tests/core/reconcile/test_observing.py"
        "::test_a_new_organization_is_planned_at_both_providers_and_nothing_is_written"
    ),
    # A customer that we did not make, or did, by what the provider shows.
    "core.reconcile.attempt:SyncAttempt.record_older_customer": (
        "tests/scenarios/test_older_lago_customers.py"
        "::test_an_attempt_at_stripe_goes_on_with_nothing_once_lago_shows_that_the_customer_is_theirs"
    ),
    "core.reconcile.attempt:SyncAttempt.record_ours": (
        "tests/core/reconcile/test_reconciler.py::test_a_customer_with_our_complete_marks_is_ours_without_an_adoption"
    ),
    # The price that a report shows; it is read.
    "providers.stripe.prices:StripePrices.price_by_id": (
        "tests/core/reconcile/test_observing.py::test_an_upgrade_is_planned_with_both_amounts"
    ),
    # Stripe waits until Lago was read; nothing is sent.
    "core.reconcile.outcomes:defer_for_lago": (
        "tests/scenarios/test_older_lago_customers.py"
        "::test_stripe_charges_nobody_while_lago_cannot_say_who_pays_there_already"
    ),
    # A key of another account: nothing is sent.
    "core.reconcile.outcomes:trip_wrong_account": (
        "tests/core/reconcile/test_account_guard.py"
        "::test_a_worker_that_could_not_ask_and_has_another_accounts_key_stops_the_biller_and_sends_nothing"
    ),
    # The end of a subscription whose invoice is finalized; in these operations it is minutes old and still a draft.
    "providers.stripe.ending:StripeEnding._find_note": (
        "tests/providers/stripe/test_ending.py::test_repeat_after_a_failure_credits_once"
    ),
    # A remote check after a webhook.
    "core.reconcile.outcomes:put_on_hold": (
        f"{_WEBHOOKS}::test_a_customer_deleted_in_stripe_puts_the_link_on_hold_with_the_way_out"
    ),
    "core.reconcile.attempt:SyncAttempt.invalidate_plan": (
        f"{_WEBHOOKS}::test_a_downgrade_that_took_effect_settles_the_plan"
    ),
    "worker.processes.relay:Relay._dispatch_provider_webhooks": (
        "tests/scenarios/test_provider_webhooks.py::test_a_customer_deleted_in_stripe_ends_on_hold_with_a_sentence"
    ),
    # A database or a broker that is down, not a process that is killed.
    "tasks.base:BillingTask.retry_in": (
        "tests/scenarios/test_deployment.py::test_a_message_that_meets_a_database_that_is_away_comes_again"
    ),
    "worker.processes.relay:Relay._relay_events#2": (
        "tests/worker/processes/test_relay.py::test_what_a_broker_that_is_away_did_not_take_is_pending_again_at_once"
    ),
    # An import adds the organization that messages wait for.
    "core.inbox.service_events:_apply_waiting_in_transaction": (
        "tests/core/predecessor/test_importing.py"
        "::test_what_is_said_while_its_organization_is_being_imported_is_not_left_waiting"
    ),
    # Customers that existed before billing-sync.
    "providers.lago.customers:LagoCustomers._find": f"{_CUSTOMERS}::test_imported_id_is_read_before_it_is_written",
    "providers.lago.customers:LagoCustomers._refuse_other_subscriptions": (
        f"{_CUSTOMERS}::test_customer_that_was_there_before_us_is_checked_for_subscriptions"
    ),
    # A customer without a billing email, and a free plan that becomes paid: no organization here has either.
    "providers.stripe.collection:StripeCollection._read": (
        f"{_COLLECTION}::test_paid_plan_without_an_address_is_refused_before_the_create"
    ),
    "providers.stripe.subscriptions:StripeSubscriptions._prepare_collection": (
        f"{_COLLECTION}::test_free_plan_that_becomes_paid_is_mailed_from_its_first_invoice_on"
    ),
    # The runs set no OPERATIONS_EMAIL. The insert names its predecessor, so what a crash repeats inserts nothing.
    "core.emails.operations_digest:enqueue_due": (
        "tests/core/emails/test_operations_digest.py::test_two_schedulers_at_once_queue_one"
    ),
    # A restored database; no run here restores one.
    "providers.stripe.customers:StripeCustomers._search_marked_as_ours": (
        "tests/scenarios/test_double_charging.py::test_a_restored_database_finds_the_customer_that_it_forgot"
    ),
    # `billing-sync plans push`: an operator's command, which the operator repeats.
    "providers.lago.plans:LagoPlans.create_price": (
        "tests/providers/lago/test_subscriptions.py::test_plan_is_added_in_advance_and_once"
    ),
    # It also reads the price of a plan that is sold again, after which the write is the one of any upgrade.
    "providers.lago.plans:LagoPlans.find": (
        "tests/scenarios/test_custom_prices.py::test_a_plan_whose_price_was_changed_in_lago_is_not_sold_again_without_a_word"
    ),
    # A customer with more than ten subscriptions; here each has one.
    "providers.stripe.customers:StripeCustomers._live_subscriptions": (
        "tests/providers/stripe/test_customers.py"
        "::test_every_subscription_of_a_customer_with_many_is_named_where_lago_charges"
    ),
    "providers.stripe.prices:StripePrices._create_product": (
        f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once"
    ),
    "providers.stripe.prices:StripePrices._has_product": f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once",
    "providers.stripe.prices:StripePrices.create_price": f"{_STRIPE}::test_offer_whose_answer_was_lost_is_added_once",
}
