"""What an operator reads about a difference: one table from a code to its sentence.

A rule chooses the code and gives the parameters of the sentence. Each sentence names a way out: a command, something to
do at the provider, or what the repair does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

AdviceCode = Literal[
    # The customer
    "wrong_account",
    "customer_not_linked",
    "duplicate_customer",
    "customer_deleted",
    "customer_recreated",
    "customer_not_found",
    "other_customer_has_org_id",
    "org_id_cleared",
    "customer_of_two_organizations",
    "customer_field_differs",
    "charged_currency_differs",
    "payer_not_set",
    "payer_removed",
    "payer_is_first",
    "payer_differs",
    "payer_set",
    "payer_still_linked",
    # The subscription
    "no_desired_state",
    "organization_deleted",
    "charged_by_lago",
    "foreign_subscription",
    "ended_in_lago",
    "ended_in_stripe",
    "inactive_in_lago",
    "plan_differs",
    "plan_not_repairable",
    "next_plan_missing",
    "next_plan_undesired",
    "arrangement",
    "plan_of_arranged_subscription",
    # Of an observed organization, instead of what a repair or an attempt would do
    "observed",
    "observed_theirs",
    # No desired state
    "plan_not_in_catalog",
    "plan_in_other_currency",
    "sold_code_not_in_catalog",
    "lago_still_has_payer",
    "stripe_still_has_subscription",
    "charging_provider_would_change",
    # The link is on hold after a remote check
    "conflict_customer",
    "conflict_subscription",
    "conflict_ended_subscription",
    "conflict_missing_subscription",
    "conflict_plan",
    "conflict_next_plan",
    "conflict_payer",
    "conflict_payer_removed",
    "conflict_payer_never_set",
    "conflict_payer_set",
    "conflict_adoption",
    "conflict_older_subscription",
    "conflict_price_of_its_own",
    "conflict_arrangement",
    "conflict_arranged_provider_change",
    "conflict_first_payment",
]

ADVICE_SENTENCES: Final[Mapping[AdviceCode, str]] = {
    "wrong_account": (
        "its ids belong to the account {link_account}, but our API key belongs to {key_account}: set the id of the "
        "customer in {key_account} with `billing-sync set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "customer_not_linked": (
        "set the right customer with `billing-sync set-customer-id {org_id} --{provider} …`, then `billing-sync adopt "
        "{org_id}`"
    ),
    "duplicate_customer": (
        "{linked_id} is the customer that we use. Keep it, transfer the unpaid invoices of {duplicate_id} to it, and "
        "clear metadata.billing_sync_org_id of {duplicate_id} in Stripe; never delete the customer that has invoices"
    ),
    "customer_deleted": (
        "it was deleted in {provider_name}, which cannot be undone: set the right customer id with `billing-sync "
        "set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "customer_recreated": (
        "it was deleted in Lago and another customer was created with our id: set the right customer id with "
        "`billing-sync set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "customer_not_found": (
        "{provider_name} knows no such customer: it was deleted, or the API key belongs to another account. Check the "
        "key, or create a customer with org_id {org_id} and set the right customer id with `billing-sync "
        "set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "other_customer_has_org_id": (
        "{provider_name} does not know our customer id, but another customer has our org_id: if that is the right one, "
        "set the right customer id with `billing-sync set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "org_id_cleared": "the repair sets billing_sync_org_id on the customer again",
    "customer_of_two_organizations": (
        "two organizations refer to {customer_id}: correct metadata.billing_sync_org_id in {provider_name}, or set "
        "this organization's own customer with `billing-sync set-customer-id {org_id} --{provider} …`, then "
        "`billing-sync adopt {org_id}`"
    ),
    "customer_field_differs": "the repair writes our {field} to {provider_name}",
    "charged_currency_differs": (
        "Lago cannot change the currency of a customer that has been charged: run `billing-sync set {org_id} "
        "--currency {theirs}`, or resolve it in Lago"
    ),
    "payer_not_set": (
        "the repair sets the Stripe customer that Lago charges: from then on Lago charges its invoices automatically"
    ),
    "payer_removed": (
        "somebody removed the payer in Lago, so Lago charges nobody: set it again in Lago, or run `{retry_command}`, "
        "which asks for your decision"
    ),
    "payer_is_first": "the payer in Lago was changed: run `{retry_command}`, and decide about the payer first",
    "payer_set": (
        "the organization was adopted without a payer, and somebody has set one in Lago since: unlink it there; or run "
        "`{retry_command}`, and decide then which is meant"
    ),
    "payer_differs": (
        "Lago charges another Stripe customer, and replacing it would lose its payment methods: decide which of the "
        "two is right"
    ),
    "payer_still_linked": (
        "Stripe charges for this plan: run `billing-sync charging move --to stripe --out FILE`, or correct the setting"
    ),
    "no_desired_state": "{reason}",
    "organization_deleted": (
        "the organization is deleted: end the subscription in {provider_name} unless it is meant to continue"
    ),
    "charged_by_lago": (
        "Lago charges for this plan: end the subscription in Stripe, or let Stripe charge for it (`charged_by`)"
    ),
    "foreign_subscription": (
        "we did not create {subscription_id} on {customer_id}, and it charges in addition to ours: end it in "
        "{provider_name}, or change ours with `billing-sync set {org_id} --plan …`; it is never adopted automatically"
    ),
    "ended_in_lago": "it was ended in Lago, not by us; the repair creates it again",
    "ended_in_stripe": (
        "it was ended in Stripe, not by us. To charge again, create a subscription for the customer in Stripe with "
        "the price of its plan and metadata billing_sync_org_id={org_id}, then run `{retry_command}` to adopt it"
    ),
    "inactive_in_lago": (
        "Lago has a subscription with our id that is inactive or belongs to another customer: resolve it in Lago, then "
        "run `{retry_command}`"
    ),
    "plan_differs": "the repair switches it to our plan immediately",
    "plan_not_repairable": (
        "the repair never lowers a price and does not touch an unknown plan: correct it in {provider_name}, or run "
        "`billing-sync set {org_id} --plan …` with the plan that was meant"
    ),
    "next_plan_missing": "the repair schedules our next plan",
    "next_plan_undesired": "the repair cancels the scheduled plan",
    "arrangement": (
        "billing-sync neither set it nor removes it, and changes no plan while it is there: leave it if it is meant, "
        "or cancel it in {provider_name}"
    ),
    "plan_of_arranged_subscription": (
        "the subscription has {arrangement} in {provider_name}, so the repair does not touch it: run "
        "`billing-sync set {org_id} --plan …` with the plan that it has there; or remove {arrangement} in "
        "{provider_name}, then run `billing-sync drift check`"
    ),
    "observed": (
        "nothing is repaired while the organization is observed: `billing-sync management report {org_id}` shows what "
        "would be written, and `billing-sync management manage {org_id}` manages it"
    ),
    "observed_theirs": (
        "nothing is repaired while the organization is observed, because billing-sync did not make all that it has: "
        "`billing-sync management report {org_id}` shows what would be written, and `billing-sync adopt {org_id}` "
        "adopts it"
    ),
    "plan_in_other_currency": (
        "plan {tier} costs {plan_currency}, and the organization pays in {currency}: run `billing-sync set "
        "{org_id} --currency {plan_currency}`, or `billing-sync set {org_id} --plan …` with a plan in {currency}"
    ),
    "sold_code_not_in_catalog": (
        "the subscription was sold as {code} in {provider_name}, which is the code of no plan in the catalog, and "
        "stays as it is: list {code} under `former_codes.{provider}` of the plan that it was sold as in plans.toml, "
        "restart the workers and the API, and run `billing-sync retry {org_id}`"
    ),
    "plan_not_in_catalog": (
        "plan {tier!r} is not in the catalog ({tiers}): run `billing-sync set {org_id} --plan …` with one of these "
        "plans; or add a table for the plan to plans.toml, restart the workers and the API, and run `billing-sync "
        "retry {org_id}`"
    ),
    "lago_still_has_payer": (
        "Stripe charges for this plan, but the customer in Lago is still linked to {payer_id}: run "
        "`billing-sync charging move --to stripe --out FILE`, which lists who moves, or restore the setting and run "
        "`billing-sync retry {org_id}`"
    ),
    "stripe_still_has_subscription": (
        "Lago charges for this plan, but Stripe still has {subscription}: Lago is updated once that subscription has "
        "ended; before you retry, read under Stripe in `billing-sync status {org_id}` how to end it or keep it"
    ),
    "charging_provider_would_change": (
        "the downgrade from {tier} to {next_tier} would move billing from {charged_by} to {next_charged_by} at period "
        "end, which neither provider can schedule: cancel it with `billing-sync set {org_id} --plan {tier}`, or let "
        "one provider charge for both plans"
    ),
    "conflict_customer": "{object_id} at {provider_name}: {advice}",
    "conflict_subscription": "{object_id} at {provider_name}: {advice}; then run `{retry_command}`",
    "conflict_ended_subscription": (
        "its subscription was ended at {provider_name}, but not by billing-sync, so it is not created again "
        "automatically: run `billing-sync resolve {org_id} --ours` to create it again, or `billing-sync set "
        "{org_id} --status deleted` to end billing"
    ),
    "conflict_missing_subscription": "subscription {object_id}: {advice}",
    "conflict_plan": (
        "subscription {object_id} at {provider_name} is on {theirs}, but billing-sync expects {ours} and did not make "
        "this change: run `billing-sync resolve {org_id} --ours` to restore {ours}, or `billing-sync resolve {org_id} "
        "--theirs` to change the organization to {theirs}"
    ),
    "conflict_next_plan": (
        "subscription {object_id} at {provider_name} is scheduled to change to {theirs}, but billing-sync expects "
        "{ours} and did not make this change: run `billing-sync resolve {org_id} --ours` to correct "
        "{provider_name}, or `billing-sync resolve {org_id} --theirs` to correct the organization"
    ),
    "conflict_payer": (
        "Lago charges the Stripe customer {theirs}, but billing-sync expects {ours} and did not make this change: run "
        "`billing-sync resolve {org_id} --ours` to let Lago charge {ours}, or `billing-sync resolve {org_id} --theirs` "
        "to give the organization the Stripe customer {theirs}"
    ),
    "conflict_payer_removed": (
        "Lago charges nobody for the organization, but billing-sync expects it to charge {ours} and did not make this "
        "change: run `billing-sync resolve {org_id} --ours` to let Lago charge {ours} again"
    ),
    "conflict_payer_never_set": (
        "the customer in Lago has a subscription but no payer, so its invoices are paid in another way. Nothing was "
        "changed: run `billing-sync resolve {org_id} --ours` to let Lago charge {ours} for them from now on"
    ),
    "conflict_payer_set": (
        "Lago charges the Stripe customer {theirs}, but the organization was adopted without a payer, and billing-sync "
        "did not make this change: clear the payer in Lago and run `billing-sync resolve {org_id} --ours`, or run "
        "`billing-sync resolve {org_id} --theirs` to let Lago charge {theirs}"
    ),
    "conflict_adoption": (
        "billing-sync does not know subscription {subscription_id} in Stripe, and its terms are not those of the "
        "plan: it charges {theirs}, the plan {ours}. Nothing was changed: change the subscription in Stripe to the "
        "terms of the plan, or run `billing-sync set {org_id} --plan …` with the plan of that price, or end the "
        "subscription in Stripe; "
        "then run `billing-sync resolve {org_id} --ours`"
    ),
    "conflict_older_subscription": (
        "billing-sync did not create subscription {subscription_id} in Lago, and it is on {theirs}, not on {ours}. "
        "Nothing was changed, because that would change its price: run `billing-sync resolve {org_id} "
        "--theirs` to give the organization that plan, or change the subscription to {ours} in Lago and run "
        "`billing-sync resolve {org_id} --ours`"
    ),
    "conflict_price_of_its_own": (
        "it paid {paid} for {plan} in Lago until {theirs} took effect there. {plan} now costs {listed} in Lago, so it "
        "was not sold again: run `billing-sync resolve {org_id} --ours` to sell it at {listed}, or "
        "`billing-sync resolve {org_id} --theirs` to leave the organization on {theirs}"
    ),
    "conflict_arrangement": (
        "subscription {subscription_id} has {arrangement} at {provider_name}, which billing-sync did not set, so it "
        "was not changed to {plan}. To change it, first remove {arrangement} in {provider_name}, then run "
        "`billing-sync resolve {org_id} --ours`; as long as it is there, that only puts the link on hold again. To "
        "leave it as it is, run `billing-sync resolve {org_id} --theirs`, which gives the organization the plan that "
        "it has there"
    ),
    "conflict_arranged_provider_change": (
        "subscription {subscription_id} has {arrangement} in Stripe, which billing-sync did not set, so it was not "
        "ended for the new plan, for which Lago charges. Remove {arrangement} in Stripe, end it there, or give "
        "the organization its former plan; then run `billing-sync resolve {org_id} --ours`"
    ),
    "conflict_first_payment": (
        "subscription {subscription_id} at {provider_name}, or its upgrade, waits for its first payment, so it was not "
        "changed to {plan}, and no other one was created. {provider_name} ends no such subscription on request: it "
        "becomes active when it is paid, and is canceled when the payment fails or its time runs out. After that, run "
        "`billing-sync resolve {org_id} --ours`; until then that only puts the link on hold again. To leave it as it "
        "is, run `billing-sync resolve {org_id} --theirs`, which gives the organization the plan that it has there"
    ),
}

ADVICE_OF_ATTEMPTS: Final[frozenset[AdviceCode]] = frozenset(
    code for code, sentence in ADVICE_SENTENCES.items() if "the repair" in sentence or "{retry_command}" in sentence
)
"""They say what a repair or an attempt does, so they are wrong while the organization is observed."""


@dataclass(frozen=True, slots=True)
class Advice:
    """``parameters``: at least those that the sentence of the code names."""

    code: AdviceCode
    parameters: Mapping[str, str | None]

    @property
    def sentence(self) -> str:
        return ADVICE_SENTENCES[self.code].format_map(self.parameters)
