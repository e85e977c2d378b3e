"""The entries of ``docs/operations/runbook.md``: for each code what it means, its cause, where to look, what to type.

``docs/generate.py`` writes the page. A code that the code can show and that has no entry here ends it with a sentence
that says which. What the failure table says of a provider's code is taken from the table.
"""
# ruff: noqa: INP001 - a folder of documents with programs, not a package

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, get_args

import yaml

from core.compare.findings import FindingKind
from core.db.models.billing_links import PaymentStatus
from core.db.models.providers import BreakerReason
from core.ports.errors import ErrorKind
from core.ports.spec import PROVIDER_NAMES, PROVIDERS
from core.reconcile import payment_goals
from core.webhooks.deliveries import DeliveryError, NoResponseReason
from docs.meanings import FINDING_MEANINGS, PROBLEM_MEANINGS
from providers.transport.failure_table import FAILURE_RULES, FailureAction, FailureRule

ROOT: Final = Path(__file__).resolve().parent.parent
STATUS: Final = "`billing-sync status ORG`"
RETRY: Final = "`billing-sync retry ORG`"
OURS_OR_THEIRS: Final = "`billing-sync resolve ORG --ours`, or `billing-sync resolve ORG --theirs`."
# How a call names the code of another error, or computes it from constants of its own module.
_PASSED_ON: Final = frozenset({"error.code", "_error_code(finding)"})


class Entry(NamedTuple):
    means: str
    cause: str
    look: str
    do: str


LINK_CODES: Final[Mapping[str, Entry]] = {
    "arranged_at_provider": Entry(
        "The plan of a subscription was to be changed that has a planned end, a pause, a schedule or an open first "
        "payment at the provider.",
        "Somebody arranged it in the dashboard.",
        f"{STATUS}, the line `arranged`.",
        "Remove it at the provider, then `billing-sync resolve ORG --ours`. To leave it: `billing-sync resolve ORG "
        "--theirs`.",
    ),
    "changed_at_provider": Entry(
        "A plan, a subscription or its end was changed at the provider, and not by billing-sync.",
        "Somebody changed it in the dashboard, or another program did.",
        "`billing-sync parked`, which names both states.",
        OURS_OR_THEIRS,
    ),
    "charging_provider_would_change": Entry(
        "A scheduled downgrade would move billing to the other provider, which neither can schedule.",
        "The two plans have another `charged_by` in plans.toml.",
        f"{STATUS} and plans.toml.",
        "`billing-sync set ORG --plan PLAN` with the current plan cancels it. Or let one provider charge for both.",
    ),
    "credit_not_computable": Entry(
        "A Stripe subscription has ended, and the credit for its unused time cannot be computed.",
        "Its invoice has discounts, taxes or many lines.",
        f"{STATUS}, which names the invoice.",
        f"Create the credit note in Stripe with the metadata that the message names, then {RETRY}.",
    ),
    "customer_deleted": Entry(
        "Our customer was deleted at the provider, and its subscriptions with it.",
        "Somebody deleted it in the dashboard.",
        f"{STATUS}; search the provider for another customer of this organization.",
        "`billing-sync set-customer-id ORG --stripe ID` (or `--lago`) with the right one, then `billing-sync adopt "
        "ORG`.",
    ),
    "customer_id_in_use": Entry(
        "Two organizations have the same customer id.",
        "A wrong id was imported or set.",
        "`billing-sync parked`, which names both organizations.",
        "`billing-sync set-customer-id ORG --stripe ID` (or `--lago`) for the one that has the wrong id, then "
        "`billing-sync adopt ORG`.",
    ),
    "customer_id_not_imported": Entry(
        "The customer id in the predecessor's file could not be used.",
        "The file is damaged, or the id has no valid form.",
        "`billing-sync parked`.",
        "`billing-sync set-customer-id ORG --stripe ID` (or `--lago`), then `billing-sync adopt ORG`; "
        f"{RETRY} creates a new customer instead.",
    ),
    "customer_not_ours": Entry(
        "An observed organization was deleted, and its customer at the provider is not ours and may still pay.",
        "Its id came from outside and was never adopted, so billing-sync ends nothing there.",
        f"{STATUS}, which names the customer.",
        "End its subscriptions at the provider; a deleted organization cannot be adopted. The next read shows that "
        "they ended, and the warning goes away; not of a customer in Lago whose external id is neither ours nor known.",
    ),
    "double_charging": Entry(
        "Both providers would charge for the organization, so this one does not begin.",
        "The charging provider changes, and the former one has not stopped; or somebody sold a subscription by hand.",
        f"{STATUS}, at both providers.",
        "If the setting is meant, `billing-sync charging move` moves the organization; otherwise restore the setting, "
        f"or end the subscription in Stripe, as the message says; then {RETRY}.",
    ),
    "end_on_hold": Entry(
        "The end of a subscription is on hold before anything was sent: the organization goes on paying.",
        "More changes of what is paid came within an hour than MONEY_CHANGES_PER_HOUR allows.",
        "`billing-sync brake list`.",
        "`billing-sync brake release --only ORG --reason …` sends it; `billing-sync brake drop` never does.",
    ),
    "empty_name": Entry(
        "The predecessor's file had no name for the organization.",
        "The file was damaged or incomplete.",
        "`billing-sync parked`.",
        f"`billing-sync set ORG --name NAME`, then {RETRY}.",
    ),
    "last_invoice_awaited": Entry(
        "The organization moves to Stripe. Its subscription in Lago has ended, and Lago makes the last invoice.",
        "`billing-sync charging move`.",
        f"{STATUS}.",
        "Nothing: it goes on after a minute.",
    ),
    "last_invoice_unpaid": Entry(
        "The organization moves to Stripe, and Lago still collects an invoice from its payer.",
        "The payment has not ended, or Lago has no payment method.",
        f"{STATUS}, which names the invoice.",
        "Nothing: it goes on when the invoice is paid or has failed, or after an hour. Have it paid in Lago by then.",
    ),
    "payer_is_not_ours": Entry(
        "The organization moves to Stripe. Its subscription in Lago has ended, and Lago has another payer than ours.",
        "Somebody set it in Lago meanwhile.",
        f"{STATUS}, which names the payer.",
        f"Take that payer out in Lago, then {RETRY}.",
    ),
    "payer_change_on_hold": Entry(
        "A change of the payer in Lago is on hold before anything was sent.",
        "More changes of what is paid came within an hour than MONEY_CHANGES_PER_HOUR allows.",
        "`billing-sync brake list`.",
        "`billing-sync brake release --only ORG --reason …` sends it; `billing-sync brake drop` never does.",
    ),
    "payment_change_dropped": Entry(
        "An operator decided that this change of what is paid is not sent.",
        "`billing-sync brake drop`; the organization's row has the change, and the provider has not.",
        f"{STATUS}.",
        "Correct the organization with `billing-sync set ORG`, then run `billing-sync brake release --only ORG "
        "--reason …`.",
    ),
    "plan_change_on_hold": Entry(
        "A change of the plan or the price is on hold before anything was sent.",
        "More changes of what is paid came within an hour than MONEY_CHANGES_PER_HOUR allows.",
        "`billing-sync brake list`.",
        "`billing-sync brake release --only ORG --reason …` sends it; `billing-sync brake drop` never does.",
    ),
    "minor_unit": Entry(
        "An amount has no counterpart in the units of this provider.",
        "The provider counts the currency with other decimals, or does not have it.",
        "The plan in plans.toml.",
        f"Correct the amount or the currency of the plan, restart the workers and the API, then {RETRY}.",
    ),
    "no_billing_email": Entry(
        "Stripe mails the invoices of this plan, and the customer has no email address.",
        "The organization has no billing email; imported ones have none.",
        f"{STATUS}.",
        "`billing-sync set ORG --billing-email ADDRESS`; the subscription is then created by itself.",
    ),
    "no_payment_method": Entry(
        "Stripe charges automatically, and the customer has no default payment method.",
        "The customer has not entered one.",
        "The customer in Stripe.",
        f"Let the customer set one, then {RETRY}.",
    ),
    "other_terms": Entry(
        "A subscription that billing-sync did not create has other terms than the plan.",
        "Somebody sold it in the dashboard.",
        "`billing-sync parked`, which names both prices.",
        "In Lago: `billing-sync resolve ORG --theirs`. Else correct or end the subscription at the provider, then "
        "`billing-sync resolve ORG --ours`.",
    ),
    "payer_changed": Entry(
        "Lago charges another Stripe customer than ours, or none.",
        "Somebody changed the payment provider of the customer in Lago.",
        "`billing-sync parked`, which names both customers.",
        OURS_OR_THEIRS,
    ),
    "plan_in_other_currency": Entry(
        "The plan is in another currency than the organization.",
        "The plan was changed in plans.toml, or an import brought the currency.",
        f"{STATUS} and `billing-sync plans check`.",
        "`billing-sync set ORG --plan PLAN`, or `billing-sync set ORG --currency CODE`.",
    ),
    "scheduled_plan_needs_marks": Entry(
        "An adopted organization is given back, and a lower plan is scheduled for it in Stripe.",
        "Only our metadata says what it pays until then, so the metadata is not removed.",
        f"{STATUS}, which names both plans.",
        "`billing-sync set ORG --plan PLAN` with the current plan; or wait until the lower plan has taken effect, then "
        f"{RETRY}.",
    ),
    "sold_code_not_in_catalog": Entry(
        "The subscription was sold under a code that is in no plan of the catalog.",
        "A code was changed in plans.toml, and the former one was not listed.",
        f"{STATUS}; the code is in the message.",
        f"List it under `former_codes` of its plan in plans.toml, restart the workers and the API, then {RETRY}.",
    ),
    "undefined_transition": Entry(
        "A link was in a state that its table of states does not allow.",
        "A defect of billing-sync.",
        f"{STATUS} and the log of the worker.",
        f"Report it with the message. {RETRY} reads everything again.",
    ),
    "unknown_lookup_key": Entry(
        "Stripe has no active price with the lookup key of the plan.",
        "The plan was not pushed, or the key moved to another account or mode.",
        "`billing-sync plans check`.",
        f"`billing-sync plans push`, then {RETRY}; for all `billing-sync retry --error unknown_lookup_key`.",
    ),
    "unknown_plan": Entry(
        "The organization's plan is not in the plan catalog, so nothing is billed.",
        "A plan was removed or renamed in plans.toml, an import brought it, or a process reads another plans.toml.",
        f"{STATUS} and `billing-sync plans check`.",
        "`billing-sync set ORG --plan PLAN`. Or add the plan to plans.toml, restart the workers and the API, then "
        "`billing-sync retry --error unknown_plan`.",
    ),
    "unknown_status": Entry(
        "The predecessor's file had a status that billing-sync does not know; it was imported as suspended.",
        "The file was damaged, or another program wrote it.",
        "`billing-sync parked`.",
        f"`billing-sync set ORG --status STATUS`, then {RETRY}.",
    ),
    "wrong_account": Entry(
        "The API key belongs to another account than this database or the ids of this organization.",
        "A key of another account or mode was set, or an id was copied from there.",
        "`billing-sync status` shows both accounts.",
        "All organizations: set the right key and restart every worker. One organization: `billing-sync "
        "set-customer-id ORG --stripe ID` (or `--lago`).",
    ),
}

LINK_KINDS: Final[Mapping[ErrorKind | str, Entry]] = {
    "ambiguous": Entry(
        "What exists at the provider cannot be proven, so nothing was created.",
        "Several customers name the organization, or an answer was lost and its search found several.",
        "`billing-sync parked`; search Stripe for `billing_sync_org_id` in the metadata.",
        f"Clear `org_id` on the wrong one and delete no customer; then {RETRY}.",
    ),
    "conflict": Entry(
        "Somebody changed at the provider what we charge, whom, or by whom.",
        "A change in the dashboard. A webhook or an attempt found it.",
        "`billing-sync parked`.",
        OURS_OR_THEIRS,
    ),
    "import": Entry(
        "The imported data is doubtful, so nothing is sent before an operator decides.",
        "The predecessor's file was damaged or ambiguous.",
        "`billing-sync parked`.",
        f"Correct it with `billing-sync set ORG` or `billing-sync set-customer-id ORG`; {RETRY} accepts it.",
    ),
    "payment_brake": Entry(
        "The payment brake holds a change of what somebody pays.",
        "More changes of what is paid came within an hour than MONEY_CHANGES_PER_HOUR allows.",
        "`billing-sync brake list`.",
        "`billing-sync brake release --only ORG --reason …` sends it; `billing-sync brake drop` never does.",
    ),
    "misconfigured": Entry(
        "The provider rejects our key, address or permission. Every organization waits.",
        "A setting is wrong, a key expired or was revoked.",
        "`billing-sync status`, which says what is rejected.",
        "Correct the setting and restart the workers. To probe now: " + RETRY + ".",
    ),
    "not_yet_allowed": Entry(
        "The provider allows it after something of its own, such as a payment. It is retried.",
        "A first payment or a tax is pending there.",
        f"{STATUS}.",
        "Nothing. To end the wait, finish or cancel the payment at the provider.",
    ),
    "outcome_unknown": Entry(
        "It is not known whether a request took effect. The next attempt reads what exists.",
        "An answer was lost, or Stripe replays a stored failure.",
        f"{STATUS}.",
        "Nothing. It is retried.",
    ),
    "rejected": Entry(
        "The provider rejects the request, or we do not send it. A provider's code that is not on this page is one "
        "that this version does not list.",
        "The message says it.",
        f"{STATUS}; look up the request id in the provider's dashboard.",
        f"Remove the cause, then {RETRY}.",
    ),
    "throttled": Entry(
        "The provider received too many requests. It is retried, at a lower rate.",
        "Other programs use the same account, or our rate limit is set too high.",
        "`billing-sync status`.",
        "Nothing. If it lasts, lower `STRIPE_RATE_LIMIT` or `LAGO_RATE_LIMIT`.",
    ),
    "unavailable": Entry(
        "The provider did not respond, or its response says nothing about our request. It is retried.",
        "The provider, the network or a proxy fails.",
        "`billing-sync status`, and the provider's status page.",
        "Nothing; waiting links resume by themselves. To probe now: " + RETRY + ".",
    ),
    "unexpected": Entry(
        "The program raised an error that nobody named. It is tried eight times with growing waits, then parked.",
        "A defect of this version, or an answer of the provider that no document describes.",
        f"{STATUS}; the log event `link_failed_unexpectedly` says where.",
        f"Report the error and the place. After an update that mends it: {RETRY}.",
    ),
    "waiting_for_payer": Entry(
        "No error: Lago waits for the Stripe customer that it will charge.",
        "The link to Stripe is not in sync yet.",
        f"{STATUS}, at Stripe.",
        "Nothing, unless the link to Stripe is parked.",
    ),
}

PAYMENTS: Final[Mapping[PaymentStatus, Entry]] = {
    "dispute_lost": Entry(
        "The bank took back what was paid.",
        "The customer disputed a payment.",
        "`billing-sync orgs --unpaid`, and the invoice in Lago.",
        "Void the invoice in Lago, or `billing-sync resolve ORG --dispute`.",
    ),
    "failed": Entry(
        "An invoice could not be charged.",
        "The payment method was declined.",
        "`billing-sync orgs --unpaid`; the code is the payment provider's.",
        "Nothing here: the customer pays or changes the payment method.",
    ),
    "manual": Entry(
        "The subscription in Lago is paid manually, so Lago charges nobody automatically.",
        "Somebody set its payment method in Lago.",
        STATUS + ".",
        "If that is not meant, set its payment method in Lago.",
    ),
    "overdue": Entry(
        "An invoice in Lago is past its due date, and nobody has paid it.",
        "The customer has no payment method, or a transfer is on its way.",
        "`billing-sync orgs --unpaid`, and the invoice in Lago.",
        "Nothing here: it ends when the invoice is paid or voided in Lago.",
    ),
    "payer_rejected": Entry(
        "The payment provider of Lago rejects the customer.",
        "The Stripe customer was deleted, or the connection in Lago has another account.",
        STATUS + ".",
        f"Correct the customer in Stripe, then {RETRY}.",
    ),
}

_REPLAY: Final = (
    "`billing-sync webhooks replay ID --event ID`; `billing-sync webhooks replay ID` sends all that failed."
)
DELIVERIES: Final[Mapping[DeliveryError, Entry]] = {
    "bad_address": Entry(
        "The URL of the endpoint cannot be used.",
        "Its host name is not valid.",
        "`billing-sync webhooks list`.",
        "`billing-sync webhooks remove ID`, then `billing-sync webhooks add URL` with the right one.",
    ),
    "disabled": Entry(
        "The endpoint was disabled, so its waiting deliveries were not sent.",
        "It responded 410 Gone.",
        "`billing-sync webhooks list`, which says since when.",
        "If it exists again: " + _REPLAY,
    ),
    "no_answer": Entry(
        "The endpoint took the request, and the connection ended before its response.",
        "Its server or a proxy failed. It may have handled the event.",
        "`billing-sync webhooks failed`, and its log at the event's id.",
        _REPLAY,
    ),
    "no_connection": Entry(
        "No connection to the endpoint could be made, so nothing was sent.",
        "Its server is down, or its host name does not resolve.",
        "`billing-sync webhooks failed`.",
        _REPLAY,
    ),
    "private_address": Entry(
        "The host name of the endpoint leads to a private network or to this machine, so nothing was sent.",
        "Its DNS entry was changed, or it was always private.",
        "The DNS entry of the endpoint.",
        "Correct it, or set `WEBHOOK_ALLOW_PRIVATE=true` if that is meant. Then " + _REPLAY,
    ),
    "timeout": Entry(
        "The endpoint did not respond in time.",
        "It works before it responds. It may have handled the event.",
        "`billing-sync webhooks failed`, and its log at the event's id.",
        "Let it respond first and work afterwards. Then " + _REPLAY,
    ),
    "tls": Entry(
        "The certificate of the endpoint is not valid, so nothing was sent.",
        "It has expired, or is that of another name.",
        "`openssl s_client -connect HOST:443`.",
        "Renew it. Then " + _REPLAY,
    ),
    "unexpected": Entry(
        "The program raised an error that nobody named before or while it sent the event.",
        "A defect of this version.",
        "The log event `webhook_failed_unexpectedly`, which says where.",
        "Report the error and the place. After an update that mends it: " + _REPLAY,
    ),
}

TASKS: Final[Mapping[str, Entry]] = {
    "LinkParkedError": Entry(
        "Flower: an attempt parked the link, or put it on hold.",
        "The code in its text is the link's.",
        "`billing-sync parked`.",
        "See the entry of that code.",
    ),
    "LinkWaitsError": Entry(
        "Flower: the attempt is repeated within seconds.",
        "A permit, a cooldown or the other provider.",
        STATUS + ".",
        "Nothing.",
    ),
    "SyncFailedError": Entry(
        "Flower: the attempt failed, and the sweep repeats it later.",
        "The code in its text is the link's.",
        STATUS + ".",
        "Nothing, unless the entry of that code says more.",
    ),
    "TaskRetryError": Entry(
        "Flower: the message is sent again, because the database or the provider did not respond.",
        "The database is away or busy, or a provider fails.",
        "`billing-sync status`.",
        "Nothing.",
    ),
}

_CLOCKS: Final = "Or its clock differs from the API's."
ALERTS: Final[Mapping[str, tuple[str, str]]] = {
    "BillingSyncBreakerOpen": (
        "The provider or the network fails, or a key was revoked.",
        (
            "The entry of the reason: [unavailable](#unavailable), [misconfigured](#misconfigured), "
            "[wrong_account](#wrong_account)."
        ),
    ),
    "BillingSyncCreditLeft": (
        "An organization left in the middle of a paid period.",
        "Refund or grant the credit in Stripe; the next check of the link ends the alert.",
    ),
    "BillingSyncDatabaseReadOnly": (
        "Its disk is full and the server protects it, an operator switched it, or DATABASE_URL leads to a standby.",
        (
            "What `billing-sync doctor` says: free its disk, then `ALTER DATABASE … RESET "
            "default_transaction_read_only`; or set DATABASE_URL to the primary server. The processes then go on by "
            "themselves."
        ),
    ),
    "BillingSyncDeliveriesFailed": (
        "A receiver or the mail server rejected them.",
        "`billing-sync webhooks replay ID --event ID`, `billing-sync emails retry ID`, after the cause is gone.",
    ),
    "BillingSyncDiskFull": (
        "Logs, backups or the database have grown.",
        "Free space, or move DATA_DIR to a larger disk.",
    ),
    "BillingSyncDrift": (
        "A change in the dashboard, or an id that is wrong.",
        "`billing-sync drift repair ID` for what is repairable; else what the report says.",
    ),
    "BillingSyncEventsRejected": (
        "The event has a defect, or names what does not exist here.",
        "The sender corrects it and sends it under a new `id`. If the cause was here: `billing-sync inbox replay ID`.",
    ),
    "BillingSyncInboxWaits": (
        "The worker was stopped, or takes other queues only.",
        "Start a worker without `--queues`, and the relay.",
    ),
    "BillingSyncEndsOnHold": (
        "Many organizations were deleted within an hour, or many plans changed before them.",
        "`billing-sync brake list`; then `billing-sync brake release --reason …`, with `--only ORG` for some.",
    ),
    "BillingSyncPaymentChangesOnHold": (
        "A catalog, an import or a script changed many plans within an hour; or the hour was a busy one.",
        (
            "`billing-sync brake list`; then `billing-sync brake release --reason …` or `billing-sync brake drop "
            "--reason …`. Say before that the next one is meant: `billing-sync brake expect`."
        ),
    ),
    "BillingSyncBackupOld": (
        "A full disk, or a folder that the workers do not have or may not write; the log has `backup_failed`.",
        "`billing-sync backup`, which says what is wrong; `billing-sync doctor` shows the newest one.",
    ),
    "BillingSyncLinksOnHold": (
        "A change in the dashboard, or a damaged file of the predecessor.",
        "What `billing-sync parked` says of each: `billing-sync resolve ORG --ours` or `--theirs`, or `retry ORG`.",
    ),
    "BillingSyncLinksParked": (
        "The code of each link says it.",
        "The entry of its code; then `billing-sync retry ORG`, or `billing-sync retry --error CODE` for many.",
    ),
    "BillingSyncNoApi": (
        "The API does not run, its database is away, or Prometheus has no valid key.",
        "Start the API. If it runs: `curl -i http://127.0.0.1:8080/metrics` with the key of Prometheus.",
    ),
    "BillingSyncNoBeat": ("Beat was stopped, or cannot reach the database. " + _CLOCKS, "`docker compose up -d beat`."),
    "BillingSyncNoRelay": (
        "The relay was stopped, or cannot reach the database. " + _CLOCKS,
        "`docker compose up -d relay`.",
    ),
    "BillingSyncNoWorker": (
        "The workers were stopped, or cannot reach the database. " + _CLOCKS,
        "`docker compose up -d worker`.",
    ),
    "BillingSyncOldestChange": (
        "Too few workers, a rate limit that is too low, or a failure that repeats.",
        "What `billing-sync doctor` says; more workers only help while the rate limit is not used up.",
    ),
    "BillingSyncPaymentProblems": (
        "See [Payments](#payments).",
        "The entry of the status, for example [payment: failed](#payment-failed).",
    ),
    "BillingSyncProviderErrors": (
        "The provider, the network or a proxy fails.",
        "Nothing, if the provider's status page reports it. Else `billing-sync doctor`.",
    ),
    "BillingSyncQueueGrows": (
        "An import, a slow provider, or too few workers.",
        "`docker compose up -d --scale worker=4`, if the provider is not the limit; an import ends by itself.",
    ),
    "BillingSyncRelayLag": (
        "The relay was stopped, or the broker is down or full.",
        "What `billing-sync doctor` says: start the relay or the broker, or give Redis more memory. Nothing is lost.",
    ),
    "BillingSyncThrottled": (
        "The account has a lower limit, or another program uses it.",
        "Lower `STRIPE_RATE_LIMIT` or `LAGO_RATE_LIMIT`, and restart the workers.",
    ),
    "BillingSyncWebhooksMissing": (
        "The endpoint at the provider was removed or disabled, or a proxy rejects its requests.",
        "`billing-sync doctor` names what is missing at Stripe; create the endpoint again.",
    ),
    "BillingSyncWebhooksRefused": (
        "The secret is that of another endpoint, or was renewed.",
        (
            "Correct `STRIPE_WEBHOOK_SECRET` or `LAGO_WEBHOOK_SECRET`, and restart the API. The alert ends with the "
            "next webhook that is accepted. What Stripe could not deliver is read from its list of events."
        ),
    ),
}
"""Cause and what to do. What an alert means and where to look is taken from its own description and command."""
ALERT_RULES: Final = ROOT / "deploy/prometheus/alerts.yml"

_LOOK_UP_REQUEST: Final = f"{STATUS}; look up the request id in the provider's dashboard."
ACTIONS: Final[Mapping[FailureAction, tuple[str, str]]] = {
    "retry_inline": (f"{STATUS}, if it lasts.", "Nothing. It is retried within seconds, then with a growing delay."),
    "retry_later": (f"{STATUS}, if it lasts.", "Nothing. It is retried with a growing delay."),
    "await": (f"{STATUS}.", "Nothing. It is retried until the provider allows it."),
    "throttle": ("`billing-sync status`.", "Nothing. It is retried at a lower rate."),
    "verify_first": (f"{STATUS}.", "Nothing. The next attempt reads what exists, then sends under a new key."),
    "park": (_LOOK_UP_REQUEST, f"Do what it says; then {RETRY}, or `billing-sync retry --error CODE` for many."),
    "trip_breaker": (
        "`billing-sync status`, which shows the open circuit breaker.",
        f"Correct the setting and restart the workers. To probe now: {RETRY}.",
    ),
}

PROBLEMS: Final[Mapping[str, tuple[str, str]]] = {
    "bad-signature": (
        "The webhook endpoint at the provider, and the clock of this machine.",
        "Correct `STRIPE_WEBHOOK_SECRET` or `LAGO_WEBHOOK_SECRET`, and restart the API.",
    ),
    "event-rejected": (
        "`billing-sync inbox list --status rejected`.",
        "Correct the event; send it under a new `id`. If the cause was here, `billing-sync inbox replay ID`.",
    ),
    "forbidden": (
        "`billing-sync keys list`; if `detail` names the source, `billing-sync inbox sources`.",
        "`billing-sync keys create NAME --scope SCOPE`, or `billing-sync inbox bind SOURCE --account NAME`.",
    ),
    "internal": ("The log of the API, at the `request_id`.", "Report it with the traceback."),
    "malformed-webhook": ("The log of the API, at the `request_id`.", "Check the version of the provider's webhooks."),
    "name-taken": (
        "`billing-sync orgs --search NAME`.",
        "Choose another name. If strangers must not learn who is a customer, set `UNIQUE_ORGANIZATION_NAMES=false`.",
    ),
    "not-found": ("`billing-sync orgs --search NAME`.", "Correct the id or the path."),
    "too-many-requests": (
        "The log of the API: `account` is the caller.",
        "Slow the caller down, or raise `API_RATE_LIMIT`; behind a proxy set `TRUSTED_PROXIES`.",
    ),
    "unauthorized": ("`billing-sync keys list`.", "`billing-sync keys create NAME --scope SCOPE` creates another key."),
    "unavailable": (
        "`/readyz`, and `billing-sync doctor`.",
        "Start the database, or end that it is read-only; `billing-sync db upgrade` upgrades it.",
    ),
    "webhooks-not-set-up": ("The environment of the API.", "Set `WEBHOOK_SIGNING_SECRET` and restart."),
}
_CALLER_ACTS: Final = ("`detail` and `errors` of the response.", "Nothing here: the caller corrects the request.")
"""For the problems that only the caller can solve."""


# ------------------------------------------------------------------------------------------------ the codes in the code


def link_codes(folders: Iterable[Path] = (ROOT / "core", ROOT / "providers")) -> set[str]:
    """Our own codes of links: the third argument of an error of a provider, wherever one is made, and of a review."""
    found = {*payment_goals.ON_HOLD_CODES.values(), payment_goals.DROPPED_CODE}  # chosen by the kind of the change
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (code := _code_of(node)) is not None:
                found.add(_value(code, module))
            if isinstance(node, ast.FunctionDef) and node.name == "_error_code" and module.startswith("core."):
                returned = (each.value for each in ast.walk(node) if isinstance(each, ast.Return))
                found |= {_value(code, module) for code in returned if code is not None}
    return found


_ERRORS: Final = frozenset(
    {
        *("RejectedError", "AmbiguousError", "ConflictError", "UnavailableError", "NotYetAllowedError"),
        *("MisconfiguredError", "OutcomeUnknownError", "ThrottledError", "WrongAccountError"),
    }
)


def _code_of(call: ast.Call) -> ast.expr | None:
    name = ast.unparse(call.func)
    match name.rpartition(".")[2], call.args:
        case "require_review", [code, *_]:
            return code
        case error, [_, _, code, *_] if (error in _ERRORS or name == "super().__init__") and ast.unparse(
            code
        ) not in _PASSED_ON:
            is_code = isinstance(code, ast.Constant) or ast.unparse(code).isupper() or error in _ERRORS
            return code if is_code else None
    return None


def _value(code: ast.expr, module: str) -> str:
    if isinstance(code, ast.Constant):
        return str(code.value)
    holder = importlib.import_module(module)
    for name in ast.unparse(code).split("."):
        holder = getattr(holder, name)
    return str(holder)


# ------------------------------------------------------------------------------------------------------------- the page


def runbook_parts() -> Iterator[str]:
    yield "## Links"
    yield "`billing-sync parked` and `billing-sync status ORG` show these codes, each with the message of its case."
    anchors: set[str] = set()
    for code, entry in sorted({**LINK_CODES, **LINK_KINDS}.items()):
        anchors.add(code)
        yield _entry(code, entry)
    yield "## Failures of a provider"
    yield "The failure table decides about them; the message of a link names the request."
    for provider in PROVIDERS:
        for rule in FAILURE_RULES[provider]:
            yield _failure(PROVIDER_NAMES[provider], rule, anchors)
    yield "## Payments"
    for status, entry in PAYMENTS.items():
        yield _entry(f"Payment: {status}", entry)
    yield "## Tasks"
    for name, entry in TASKS.items():
        yield _entry(f"Task: {name}", entry)
    yield "## Deliveries"
    yield "`billing-sync webhooks failed` shows these where there was no response, and else the status of the response."
    for reason, entry in DELIVERIES.items():
        yield _entry(f"Delivery: {reason}", entry)
    yield "## Drift"
    for kind, meaning in FINDING_MEANINGS.items():
        yield _entry(
            f"Drift: {kind}",
            Entry(
                meaning,
                "A change at the provider, or an id that is wrong.",
                "`billing-sync drift check`, which says what to do about each.",
                "`billing-sync drift repair ID`, if the report lists it as repairable; else what the report says.",
            ),
        )
    yield "## Alerts"
    yield "Those of `deploy/prometheus/alerts.yml`; each names its entry here."
    for name, said in alert_annotations().items():
        cause, do = ALERTS[name]
        yield _entry(f"Alert: {name}", Entry(said["description"], cause, _commands(said["command"]), do))
    yield "## API"
    yield "The problem details of the API have this anchor as `help`."
    for kind, meaning in PROBLEM_MEANINGS.items():
        look, do = PROBLEMS.get(kind, _CALLER_ACTS)
        yield _entry(f"API: {kind}", Entry(meaning, "The request, or a setting of the API.", look, do))


def _entry(title: str, entry: Entry) -> str:
    return "\n".join(
        (
            f"### {title}\n",
            f"- **Means:** {entry.means}",
            f"- **Cause:** {entry.cause}",
            f"- **Look at:** {entry.look}",
            f"- **Do:** {entry.do}",
        )
    )


def _commands(text: str) -> str:
    """Commands and what to do between them, as an alert has it: "df -h; then free space"."""
    parts = (part.strip() for part in text.split(";"))
    return "; ".join(f"`{part}`" if re.match(r"(billing-sync|docker|df) ", part) else part for part in parts) + "."


def _failure(provider_name: str, rule: FailureRule, anchors: set[str]) -> str:
    """One entry for the codes that are treated alike. Of two rules with the same code the first has its anchor."""
    codes = sorted(rule.match)
    new = [code for code in codes if code not in anchors]
    anchors.update(new)
    named = ", ".join(f"`{code}`" for code in codes) or f"status {', '.join(sorted(rule.status))}"
    title = codes[0] if len(codes) == 1 and new else rule.message.split(";")[0].split(":")[0]
    slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    marks = "".join(f'<a id="{code}"></a>' for code in new if code != slug)
    look, do = ACTIONS[rule.action]
    lines = [
        f"### {title}\n",
        *([f"{marks}\n"] if marks else []),
        f"- **Means:** {rule.message}",
        f"- **Cause:** {provider_name} answered, or we recorded: {named}",
        f"- **Look at:** {look}",
        f"- **Do:** {do}",
    ]
    return "\n".join(lines)


def alert_annotations() -> dict[str, dict[str, str]]:
    """The annotations of each alert by its name, without the labels of a case."""
    document = yaml.safe_load(ALERT_RULES.read_text(encoding="utf-8"))
    rules = sorted((rule for group in document["groups"] for rule in group["rules"]), key=lambda rule: rule["alert"])
    return {
        rule["alert"]: {
            name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"the \1", text) for name, text in rule["annotations"].items()
        }
        for rule in rules
    }


def named_codes() -> dict[str, set[str]]:
    """What must have an entry, by the table of this module that has it."""
    return {
        "LINK_CODES": link_codes()
        - {code for rules in FAILURE_RULES.values() for rule in rules for code in rule.match},
        "LINK_KINDS": {*get_args(ErrorKind), *get_args(BreakerReason), "import", "waiting_for_payer"} - set(LINK_CODES),
        "PAYMENTS": set(get_args(PaymentStatus)),
        "FINDING_MEANINGS": set(get_args(FindingKind)),
        "ALERTS": set(alert_annotations()),
        "DELIVERIES": {*get_args(NoResponseReason), "disabled"},
    }


def refuse_missing_entries() -> None:
    """Raises ``SystemExit`` if a code that can be shown has no entry, or an entry has no code."""
    tables: Mapping[str, set[str]] = {
        "LINK_CODES": set(LINK_CODES),
        "LINK_KINDS": set(LINK_KINDS),
        "PAYMENTS": set(PAYMENTS),
        "FINDING_MEANINGS": set(FINDING_MEANINGS),
        "ALERTS": set(ALERTS),
        "DELIVERIES": set(DELIVERIES),
    }
    for name, codes in named_codes().items():
        if differing := sorted(codes ^ tables[name]):
            message = f"docs/runbook.py: add or remove these codes in {name}: {', '.join(differing)}"
            raise SystemExit(message)
    if unknown := sorted(set(PROBLEMS) - set(PROBLEM_MEANINGS)):
        message = f"docs/runbook.py: remove these problems: {', '.join(unknown)}"
        raise SystemExit(message)
