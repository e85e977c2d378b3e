"""What the pages of ``docs/reference`` say about names and the code does not: one sentence or two for each name.

An operator reads them. Each says what happened and, where it helps, what to do. ``docs/generate.py`` compares the names
with the code.
"""
# ruff: noqa: INP001 - a folder of documents with programs, not a package

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from api.connections import BODY_TIMEOUT_SECONDS
from core.access.invitations import INVITATION_LIFETIME, MAX_PENDING_INVITATIONS
from core.access.limits import MAX_INVITATIONS_PER_DAY, MAX_INVITATIONS_PER_DAY_TO_ONE_RECIPIENT
from core.emails.sender import MAX_EMAIL_ATTEMPTS
from core.flow_control.circuit_breaker import BREAKER_FAILURE_THRESHOLD
from core.webhooks.deliveries import DELIVERY_RETRY_DELAYS, HTTP_GONE

PROBLEM_MEANINGS: Final[Mapping[str, str]] = {
    "already-member": "The user, or the user with the invited address, is a member of the organization already.",
    "bad-signature": (
        "The signature of a provider webhook is missing, wrong or too old. Compare the webhook settings with the "
        "endpoint at the provider."
    ),
    "deleted": "The organization is deleted. A service can reactivate it by setting its status.",
    "email-not-verified": (
        "No verified email address of the user is known. The user has to verify it with the sign-in service and sign "
        "in again."
    ),
    "event-rejected": (
        "The service event is invalid or cannot be applied. `errors` names the field. Send a corrected event under a "
        "new `id`: the same `id` gets the same response."
    ),
    "forbidden": "The caller's role or scopes do not permit this request. `detail` says what it requires.",
    "internal": (
        "Unexpected error. The log line `request` with its `request_id` precedes the log line with the traceback."
    ),
    "invalid-request": (
        "A part of the request is invalid, or its `Idempotency-Key` was used for another request. `errors` names each "
        "part."
    ),
    "invitation-expired": (
        f"The token has expired, {INVITATION_LIFETIME.days} days after the invitation. Use the newest email, or ask "
        "for a new invitation."
    ),
    "invitation-not-yours": "The invitation was sent to another address. Sign in with that address.",
    "invitation-revoked": "The invitation was revoked. Ask for a new one.",
    "invitation-used": "The invitation was accepted before.",
    "invitation-void": (
        "The member who invited may no longer do so, or the invited user was removed from the organization since. Ask "
        "an owner for a new invitation."
    ),
    "last-owner": "The change would remove the last owner. Make another member an owner first.",
    "malformed-webhook": (
        "A provider webhook has a valid signature, but not the form that the provider documents. It was not stored."
    ),
    "method-not-allowed": "The path does not accept this method. The header `Allow` names those that it accepts.",
    "name-taken": (
        "Another organization that is not deleted has this name, and `UNIQUE_ORGANIZATION_NAMES` is true. Letter case, "
        "width, the number of spaces and characters that nobody sees do not count."
    ),
    "not-a-downgrade": "The plan is not lower than the present one. No change was made.",
    "not-an-upgrade": "The plan is not higher than the present one. No change was made.",
    "not-found": (
        "The path or the object does not exist, the caller may not see it, or the feature is not configured. `detail` "
        "says what to check."
    ),
    "sign-in-refused": "The sign-in by browser failed. Start it again at `/auth/login`.",
    "suspended": (
        "The organization is suspended: over HTTP its plan cannot be changed, and nobody can be invited or join. "
        "Reading, billing details and leaving go on. Messages of services and the command line may still change it."
    ),
    "too-large": "The body is too large. `detail` names the limit.",
    "too-many-invitations": (
        f"The organization has {MAX_PENDING_INVITATIONS} pending invitations, or within 24 hours it sent "
        f"{MAX_INVITATIONS_PER_DAY} invitations, or {MAX_INVITATIONS_PER_DAY_TO_ONE_RECIPIENT} to this recipient. Or "
        "within an hour the user sent `USER_INVITATIONS_PER_HOUR`, or the recipient got "
        "`RECIPIENT_INVITATIONS_PER_HOUR` from all organizations."
    ),
    "too-many-organizations": "The user created `USER_ORGANIZATIONS_PER_HOUR` organizations within an hour.",
    "too-many-requests": (
        "The caller exceeded `API_RATE_LIMIT`, or has too many requests at the same time; `detail` says which. Callers "
        "without a valid credential, and those of `/auth/login` and `/auth/callback`, are counted by their address. "
        "Retry after the seconds in the header `Retry-After`. No change was made."
    ),
    "too-slow": f"The body did not arrive within {BODY_TIMEOUT_SECONDS:.0f} seconds.",
    "unauthorized": "No API key or access token was sent, or it is not valid. `detail` says why.",
    "unavailable": (
        "The database or the sign-in service did not respond as expected, the database is read-only or has the schema "
        "of another version, or there are too many requests at the same time. `detail` says which. Retry after the "
        "seconds in the header `Retry-After`."
    ),
    "unsupported-media-type": (
        "`POST /api/events` does not accept this `Content-Type`. `detail` names those that it accepts."
    ),
    "webhooks-not-set-up": (
        "Outbound webhooks are disabled, because `WEBHOOK_SIGNING_SECRET` is not set. Set it for all processes."
    ),
}

ERROR_KIND_MEANINGS: Final[Mapping[str, str]] = {
    "unavailable": "The provider did not respond, or its response says nothing about our request.",
    "throttled": "The provider received too many requests.",
    "not_yet_allowed": (
        "The provider allows it only after something of its own, such as a payment or a tax that is pending there."
    ),
    "outcome_unknown": (
        "Our idempotency key cannot tell whether the request took effect. The next attempt reads what exists, then "
        "uses a new key."
    ),
    "misconfigured": "The provider rejects our key, address or permission. Every organization fails alike.",
    "unexpected": (
        "The program raised an error that nobody named. It is tried eight times with growing waits, then parked."
    ),
    "rejected": (
        "The provider rejects the request, or we do not send it: for example the plan is unknown, or both providers "
        "would charge."
    ),
    "conflict": (
        "Somebody changed at the provider what we charge, whom, or by whom. `billing-sync resolve` decides which state "
        "is right."
    ),
    "payment_brake": (
        "The payment brake holds a change of what somebody pays, because too many came within an hour. `billing-sync "
        "brake` lets it go or drops it."
    ),
    "ambiguous": (
        "We cannot prove what exists at the provider, for example which of two customers is the right one. Going on "
        "could create another one."
    ),
}
REACTIONS: Final[Mapping[str, str]] = {
    "RetryableError": "retried automatically",
    "UnavailableError": (
        f"retried automatically; {BREAKER_FAILURE_THRESHOLD} such organizations in a row open the circuit breaker"
    ),
    "MisconfiguredError": (
        "the circuit breaker opens and is probed every minute; correct the setting, then restart the workers"
    ),
    "ParkedError": "the link is parked; `billing-sync parked` says what to do",
    "ConflictError": "the link is on hold; `billing-sync parked` says what was changed",
    "PaymentBrakeError": "the link is on hold; `billing-sync brake list` shows it",
}

FINDING_MEANINGS: Final[Mapping[str, str]] = {
    "missing": "The linked customer does not exist at the provider, or our subscription is not active there.",
    "deleted": "The linked customer was deleted at the provider.",
    "renamed": "The customer has another name than the organization.",
    "email": "The customer has another email address than the billing email of the organization.",
    "currency": "The customer in Lago has another currency than the organization, or none.",
    "wrong_plan": (
        "The subscription has another plan or scheduled plan, or the plan of the organization cannot be applied."
    ),
    "back_link": "The linked customer names another organization, or none.",
    "duplicate": (
        "A customer names the organization, but another customer is linked; or several name it and none is linked."
    ),
    "unknown_customer": "A customer names an organization that is not in our database or has no linked customer.",
    "broken_link": "The customer in Lago has another payer than the organization's Stripe customer, or none.",
    "double_charging": (
        "The provider that must not charge has a subscription (Stripe) or a payer (Lago), so both may charge."
    ),
    "foreign_subscription": (
        "The customer has a subscription that we did not create, or the organization is deleted and still has one."
    ),
    "arrangement": (
        "Somebody planned the end of our subscription at the provider, paused it, or gave it a schedule; or it waits "
        "for its first payment."
    ),
    "wrong_account": (
        "The API key belongs to another account than our database or the linked customer. Nothing else is compared "
        "there."
    ),
}

EVENT_MEANINGS: Final[Mapping[str, str]] = {
    "organization.created": "A new organization. `owner_user_id` becomes its first owner.",
    "organization.renamed": "A new name.",
    "organization.plan_changed": (
        "A new plan tier. A lower tier takes effect at the end of the period; the current tier cancels that."
    ),
    "organization.status_changed": (
        "A new status: `active`, `suspended` or `deleted`. Only `deleted` ends the subscriptions."
    ),
    "organization.billing_details_changed": "A new billing email or currency. A field that is not sent stays.",
    "membership.added": "A user joined. Roles: `owner`, `billing_admin`, `member`. An existing member gets the role.",
    "membership.removed": "A user left.",
    "membership.role_changed": "A member has another role.",
}

WEBHOOK_MEANINGS: Final[Mapping[str, str]] = {
    "organization.created": "An organization was created with this plan.",
    "organization.updated": "The name, billing email, currency or a customer id changed. Read them from the API.",
    "organization.plan_changed": (
        "The plan is `to` from now on or, if `at` is `period_end`, from the end of the period on. If `from` and `to` "
        "are equal, a scheduled plan was canceled."
    ),
    "organization.price_change_scheduled": (
        "An operator moves the organization to another price of `tier`: it pays `amount_before` until `effective_at`, "
        "and `amount_after` from then on, both in minor units of `currency`."
    ),
    "organization.status_changed": "The status is now `to`: `active` or `suspended`.",
    "organization.deleted": "The organization was deleted. `from` was its status.",
    "organization.synced": "Both providers have every change up to `version`.",
    "membership.added": "A user joined.",
    "membership.removed": "A user left.",
    "membership.role_changed": "A member has another role.",
    "link.parked": (
        "For operators: nothing is sent for this organization to `provider` before somebody acts. `kind` and `code` "
        "are those of `billing-sync parked`."
    ),
    "link.payment_on_hold": (
        "For operators: a change of what the organization pays is on hold at `provider`. `code` is `end_on_hold`, "
        "`plan_change_on_hold` or `payer_change_on_hold`; who has an end that is held goes on paying."
    ),
    "provider.unavailable": (
        "For operators: the circuit breaker of `provider` opened. `reason` is `unavailable`, `misconfigured` or "
        "`wrong_account`. It has no `org_id`."
    ),
}

LOG_MEANINGS: Final[Mapping[str, str]] = {
    "sync_poll_failed": (
        "The API could not read whether changes are in sync, for requests with `wait=`; it tries again in a second. "
        "Report the `error`."
    ),
    "account_check_skipped": (
        "A worker started and could not read the account of a provider's API key; `reason` says why. It reads the "
        "account before its first write."
    ),
    "beat_waits_for_broker": "Beat cannot reach the broker and tries again after `seconds`. Nothing is lost.",
    "broker_away": (
        "The relay cannot publish to the broker: it is unreachable, full (`OutOfMemoryError`) or read-only. It tries "
        "again; the events stay in the database."
    ),
    "connections_refused": (
        "The API closed `count` connections within the last minute without serving a request on them, because one "
        "address or all together had too many; `open` are open. Behind a proxy set `TRUSTED_PROXIES`."
    ),
    "database_away": (
        "The relay cannot use the database: for example it is unreachable, full or read-only "
        "(`ReadOnlySqlTransaction`). It tries again."
    ),
    "database_is_ready": "The process waited for its database, and goes on.",
    "direct_url_not_used": (
        "`DATABASE_DIRECT_URL` cannot be reached, or seems to lead to a pooler, too, so the relay asks for new events "
        "instead of listening there. `reason` says what to do."
    ),
    "drift_check_failed": (
        "The database failed during an automatic drift check of `billing-sync up`. The check resumes automatically."
    ),
    "backup_failed": "No backup was taken; another one is begun in 15 minutes. Run `billing-sync doctor`.",
    "backup_taken": "A backup was taken and checked.",
    "drift_check_interrupted": "A provider failed during an automatic drift check. The check resumes automatically.",
    "drift_checked": (
        "An automatic drift check ended. It is a warning if `drifted` is not 0: `billing-sync drift check` shows the "
        "findings."
    ),
    "email_failed": (
        f"An email was rejected, or deferred {MAX_EMAIL_ATTEMPTS} times. It is not tried again. `billing-sync parked` "
        "lists it."
    ),
    "email_rescheduled": "An email was not accepted this time. It is sent again later.",
    "email_sent": "The SMTP server accepted an email.",
    "email_server_unavailable": (
        "The SMTP server accepts no email now; `reason` says why. Emails stay queued until it does."
    ),
    "email_task_deferred": "The database failed while a worker sent emails. The next run follows within seconds.",
    "email_task_failed": (
        "The database failed while `billing-sync up` sent emails. The next run follows within seconds."
    ),
    "event_received": (
        "A service event was handled; `status` is `applied`, `waiting`, `superseded` or `rejected`. `billing-sync "
        "inbox list` lists those that wait or were rejected. One that is `repeated` changes nothing."
    ),
    "heartbeat_not_removed": (
        "A process ended while the database was away. It is listed as running for one more minute."
    ),
    "unexpected_error": (
        "A message that is stored nowhere else could not be handled: `error` was raised at `at`. It is sent again "
        "with a growing wait, and after eight `tries` stored as rejected. Report it; then `billing-sync inbox replay`."
    ),
    "webhook_failed_unexpectedly": (
        "The program raised an `error` that nobody named, at `at`, before or while it sent a delivery. It counts as a "
        "failed attempt. Report it."
    ),
    "provider_webhook_failed_unexpectedly": (
        "The webhooks of a provider about one link could not be processed: `error` was raised at `at`. They are tried "
        "again with growing waits, and rejected when they have failed for an hour. Report it; then `billing-sync inbox "
        "replay`."
    ),
    "link_failed_unexpectedly": (
        "A sync attempt raised an `error` that nobody named, at `at`. It is retried; the eighth one in a row parks the "
        "link. Report it."
    ),
    "process_stalled": (
        "The loop of a worker or of beat has stood still for a minute. The process stores no heartbeat and counts as "
        "unhealthy. Restart it; what it held is done by another one."
    ),
    "heartbeat_not_stored": (
        "A process of this `kind` cannot store its heartbeat: the database is away, read-only, or older than this "
        "version. It goes on, and tries again every 20 seconds."
    ),
    "link_checked": (
        "A remote check read the provider of a link that was in sync, and found no conflict. The fields are those of "
        "`link_synced`."
    ),
    "link_freed": (
        "A link that was parked or on hold is active again. `by`: `change`, `deletion`, `retry`, `resolve`, "
        "`set-customer-id`, `due_downgrade`, `management` (another mode), or `other_link` (the attempt at the "
        "organization's other link). "
        "`request_id`: of the API request that did it. A command on a terminal does not write this line."
    ),
    "link_observed": (
        "An attempt at an observed organization stored what a reconcile would do: `steps`, or the `problem` that would "
        "park the link. Nothing was sent but reads; `requests` is how many."
    ),
    "link_on_hold": (
        "Somebody changed the provider, so an attempt put the link on hold. `billing-sync parked` says what to do. The "
        "fields are those of `link_parked`."
    ),
    "link_parked": (
        "An attempt failed and repeating cannot help, so nothing is sent until an operator or a change frees the link. "
        "`billing-sync parked` says what to do. `provider_request_id` is the id that the provider's support asks for."
    ),
    "link_synced": (
        "A provider has this version of an organization. `requests` counts the requests of the attempt, and "
        "`provider_request_ids` has the provider's ids of the last 20 that it answered. `event_id` is the newest event "
        "that the attempt served, `request_id` the API request that caused it. `previous_error`: the link had this "
        "error before."
    ),
    "link_waits": (
        "A sync task did nothing: there was work, and `reason` says why it may not be done now. `seconds`: the task "
        "runs again then; if it is null or more than 15, the sweep starts the next attempt."
    ),
    "listen_failed": (
        "The relay lost or could not make the connection on which it is notified; `reason` says why. It asks for new "
        "events several times a second, and tries again every 20 s. It is logged once until it is notified again. "
        "With `DATABASE_DIRECT_URL` that is the address to check."
    ),
    "links_swept": "The sweep sent a sync request for each of `links` due links.",
    "process_ended": (
        "A process of this `kind` ends: it was told to, or failed. One that was killed writes nothing. `billing-sync "
        "status` no longer lists it."
    ),
    "provider_breaker_closed": (
        "A probe got a response from the provider, or a process started with a valid key: requests are sent again. "
        "`reason` and `since` are of the time when the circuit breaker was open."
    ),
    "provider_breaker_opened": (
        "Nothing but probes is sent to this provider any more, for any organization. `reason`: `unavailable`, "
        "`misconfigured` or `wrong_account`; `message` says what to do. It is written once, not for each failure."
    ),
    "provider_breaker_reason_changed": (
        "The circuit breaker is still open, and for another `reason` now. `since`: when it opened."
    ),
    "provider_webhook_refused": (
        "The API refused a webhook of the provider, which was not stored; `problem` is that of the response. With "
        "`bad-signature`, compare the webhook secret with the endpoint at the provider, then restart the API. A "
        "request without any signature is only a `request` line."
    ),
    "provider_webhooks_handled": "`webhooks` provider webhooks were processed, and `links` links get a remote check.",
    "routine_checks_requested": "A remote check of `links` links was requested, in case a webhook did not come.",
    "routine_checks_behind": (
        "More links in Lago are due for a routine check than a tenth of its rate limit allows. What happens in Lago "
        "without a webhook is seen later than LAGO_CHECK_EVERY_HOURS."
    ),
    "message_dropped": (
        "What was in a queue is no task of ours and was thrown away. `reason`: it is `no_message` at all, was "
        "`not_decoded`, is `malformed`, an `invalid_task`, an `unknown_message` or an `unknown_task`, whose name is in "
        "`error`. Its contents are not logged. Look for who else writes into the broker."
    ),
    "missed_webhooks_found": (
        "`webhooks` events were in the provider's list, and no webhook came for them. Look at the webhook endpoint in "
        "the provider's dashboard."
    ),
    "missed_webhooks_unread": "The broker or the database does not respond; the events are read the next time.",
    "sign_in_service_usable": "The sign-in service responds again as expected.",
    "sign_in_service_unusable": (
        "Users cannot sign in, or their tokens cannot be checked. `reason` says what is wrong with the sign-in "
        "service, and `advice` what to do. It is logged again when the reason changes."
    ),
    "stripe_events_unread": "Stripe's list of events could not be read; nothing is skipped, the next time it goes on.",
    "queue_depths_unknown": "The broker did not respond to a scrape, so the metrics have no queue depths.",
    "redis_fallback_active": (
        "Redis is not set, does not respond or refuses writes. Each process then has its own `component`: its own rate "
        "limits or its own cache."
    ),
    "relayed": "The relay published `events` events.",
    "request": (
        "The API responded to a request; DEBUG for `/healthz` and `/readyz` if all is well. `key` is the id of the API "
        "key, `organization` of the organization."
    ),
    "sweep_failed": (
        "The sweep of `billing-sync up` cannot use the broker or the database. It runs again within seconds."
    ),
    "waits_for_database": (
        "A process waits at its start for a database that is starting, read-only or a standby; `reason` says which, "
        "and what to do. It goes on by itself. The API serves reads meanwhile, if there are any."
    ),
    "webhook_delivered": "A webhook endpoint accepted a delivery.",
    "webhook_delivery_failed": (
        f"A webhook endpoint did not accept a delivery. It is retried up to {len(DELIVERY_RETRY_DELAYS)} times. A "
        f"`status` of {HTTP_GONE} disables the endpoint at once. `billing-sync webhooks failed` lists what is not "
        "retried any more."
    ),
    "webhook_delivery_not_configured": (
        "A delivery is due, but this worker has no `WEBHOOK_SIGNING_SECRET`. Set it for all processes."
    ),
}

LINK_STATE_MEANINGS: Final[Mapping[str, str]] = {
    "active": "It is reconciled and swept.",
    "parked": "Repeating cannot help. A change that a provider must see, or a retry, makes it active.",
    "on_hold": "An operator must decide: about imported data (`retry`), or about a conflict (`resolve`).",
    "observed": (
        "It was read and compared, and nothing may be written. A change of the organization, a requested check or "
        "another mode makes it active, so that it is read again."
    ),
}
CUSTOMER_STATE_MEANINGS: Final[Mapping[str, str]] = {
    "absent": "No id is stored.",
    "unconfirmed": "The id came from outside, or everything is to be read again. It is read before it is written.",
    "unknown": "A write was sent, and its outcome is not known. The customer is written again.",
    "applied": "The provider confirmed the customer. `customer_fingerprint` is its digest.",
}
PLAN_STATE_MEANINGS: Final[Mapping[str, str]] = {
    "unknown": "Nothing is applied, or a write was sent and its outcome is not known. The subscription is read first.",
    "ending": "We set out to end the subscription. If it is found ended, we ended it.",
    "applied": "The provider confirmed the plan. `applied_plan` is its code there.",
}
