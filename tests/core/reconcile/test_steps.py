"""The truth table of the next step: every combination of link, desired state and progress has an answer.

The answers stand in ``next_steps.txt``, so a change of a rule changes a line that can be reviewed. Write it again with
``python -m tests.core.reconcile.test_steps``: a line that changes there is a request that changes at a provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final, get_args

import pytest

from core.compare.desired_state import DesiredState
from core.db.models.billing_links import CustomerState, PlanState
from core.ports.spec import CustomerSpec
from core.reconcile.steps import (
    STEPS,
    CheckRequest,
    IntentState,
    LinkFacts,
    Progress,
    Step,
    next_step,
)

FILE = Path(__file__).with_name("next_steps.txt")
CUSTOMER = CustomerSpec(org_id="org_1", name="Acme")
LETTERS: Final[dict[Step, str]] = {
    "ensure_customer": "C",
    "ensure_subscription": "S",
    "end_subscription": "E",
    "refuse_to_end": "R",
    "write_marks": "M",
    "remove_marks": "D",
    "check": "?",
    "complete": ".",
}

DESIRED_STATES: Final[dict[str, DesiredState]] = {
    "deleted": DesiredState(customer=CUSTOMER, active=False),
    "no subscription": DesiredState(customer=CUSTOMER, uncharged_plan_code="pro"),
    "pro, charging": DesiredState(customer=CUSTOMER, plan_code="pro", is_charging=True),
    "pro then starter, charging": DesiredState(
        customer=CUSTOMER, plan_code="pro", next_plan_code="starter", is_charging=True
    ),
    "pro": DesiredState(customer=CUSTOMER, plan_code="pro"),
    "pro then starter": DesiredState(customer=CUSTOMER, plan_code="pro", next_plan_code="starter"),
}
CUSTOMERS: Final[dict[str, tuple[CustomerState, bool]]] = {
    "absent": ("absent", False),
    "unconfirmed": ("unconfirmed", False),
    "unknown": ("unknown", False),
    "changed": ("applied", False),
    "applied": ("applied", True),
}
PLANS: Final[dict[str, tuple[PlanState, str | None, str | None]]] = {
    "unknown": ("unknown", None, None),
    "unknown then starter": ("unknown", None, "starter"),
    "ending": ("ending", None, None),
    "pro": ("applied", "pro", None),
    "pro then starter": ("applied", "pro", "starter"),
    "enterprise": ("applied", "enterprise", None),
    "enterprise then pro": ("applied", "enterprise", "pro"),
}
PROGRESS: Final[tuple[Progress, ...]] = (
    Progress(),
    Progress(customer_written=True),
    Progress(customer_written=True, subscription_written=True),
    Progress(subscription_written=True),
    Progress(subscription_ended=True),
    Progress(customer_written=True, subscription_ended=True),
    Progress(checked=True),
    Progress(checked=True, plan_took_effect=True),
    Progress(checked=True, plan_took_effect=True, subscription_written=True),
)
COLUMNS: Final = tuple(product((False, True), get_args(CheckRequest), PROGRESS))


def links() -> Iterator[tuple[str, LinkFacts]]:
    """Every link, with its name in the file; whether the date is known and a check is requested are columns."""
    for (customer, (state, matches)), has_subscription, (plan, (plan_state, code, next_code)), intent in product(
        CUSTOMERS.items(), (False, True), PLANS.items(), get_args(IntentState)
    ):
        subscription = "subscription" if has_subscription else "no subscription"
        yield (
            f"customer {customer}, {subscription}, plan {plan}, intent {intent}",
            LinkFacts(
                customer=state,
                fingerprint_matches=matches,
                has_subscription=has_subscription,
                plan=plan_state,
                plan_code=code,
                next_plan_code=next_code,
                intent=intent,
                scheduled_date_known=False,
                check="none",
            ),
        )


def rows() -> Iterator[tuple[str, DesiredState, list[tuple[LinkFacts, Progress, Step]]]]:
    for (name, desired), (link_name, link) in product(DESIRED_STATES.items(), links()):
        answers = [
            (
                seen := replace(link, scheduled_date_known=dated, check=check),
                progress,
                next_step(seen, desired, progress),
            )
            for dated, check, progress in COLUMNS
        ]
        yield f"{name} | {link_name}", desired, answers


def table() -> str:
    return "".join(f"{name} | {''.join(LETTERS[step] for _, _, step in answers)}\n" for name, _, answers in rows())


def test_every_row_of_the_truth_table_is_as_reviewed() -> None:
    """68,040 combinations: a step that changes is named by its line."""
    reviewed, now = FILE.read_text(encoding="utf-8").splitlines(), table().splitlines()
    assert len(reviewed) * len(COLUMNS) == len(now) * len(COLUMNS) == 68_040
    changed = [f"{before}\n{after}" for before, after in zip(reviewed, now, strict=True) if before != after]
    assert changed == [], "\n".join(changed[:10])


def test_every_step_is_an_answer() -> None:
    with_marks = {"write_marks", "remove_marks"}  # of adopted objects, see below
    answered = {step for _, _, answers in rows() for _, _, step in answers}
    assert answered | with_marks == set(LETTERS)
    assert {*LETTERS, "remove_payer"} == set(STEPS)  # of a move to Stripe, see below


def test_a_move_to_stripe_ends_the_subscription_and_then_takes_the_payer_out() -> None:
    for _, desired, answers in rows():
        if desired.active:
            moved = replace(desired, removes_payer=True)
            for link, _, _ in answers:
                asked = replace(link, is_moved=True)
                assert next_step(asked, moved, Progress()) == "end_subscription"
                assert next_step(asked, moved, Progress(subscription_ended=True)) == "remove_payer"
                assert next_step(replace(asked, has_ended=True), moved, Progress()) == "remove_payer"
                assert next_step(asked, moved, Progress(subscription_ended=True, payer_removed=True)) == "complete"


def test_marks_that_are_due_come_after_every_write_and_before_the_check() -> None:
    for _, desired, answers in rows():
        for link, progress, step in answers:
            due = next_step(replace(link, marks="due"), desired, progress)
            expected = "write_marks" if desired.active and step in {"check", "complete"} else step
            assert due == expected
            written = replace(progress, marks_written=True)
            assert next_step(replace(link, marks="due"), desired, written) == step


def test_what_is_given_back_gets_nothing_but_the_removal_of_our_marks() -> None:
    for _, desired, answers in rows():
        for link, progress, _ in answers:
            given_back = replace(link, marks="removal", next_plan_code=None)
            assert next_step(given_back, desired, progress) == "remove_marks"
            assert next_step(given_back, desired, replace(progress, marks_removed=True)) == "complete"


def test_a_scheduled_plan_that_was_cancelled_goes_before_the_removal_of_our_marks() -> None:
    found = set[Step]()
    for _, desired, answers in rows():
        for link, progress, _ in answers:
            step = next_step(replace(link, marks="removal"), desired, progress)
            if step == "ensure_subscription":
                assert (link.plan_code, link.next_plan_code is None) == (desired.plan_code, False)
                assert desired.next_plan_code is None
                written = replace(progress, subscription_written=True)
                assert next_step(replace(link, marks="removal"), desired, written) == "remove_marks"
            found.add(step)
    assert found == {"ensure_subscription", "remove_marks"}


@pytest.mark.parametrize("name", DESIRED_STATES)
def test_steps_end_and_none_is_taken_twice(name: str) -> None:
    """From every link, whatever the check finds."""
    desired = DESIRED_STATES[name]
    starts = (
        replace(link, scheduled_date_known=dated, check=check)
        for _, link in links()
        for dated, check in product((False, True), get_args(CheckRequest))
    )
    for link, took_effect in product(starts, (False, True)):
        progress, taken = Progress(), list[Step]()
        while (step := next_step(link, desired, progress)) not in {"complete", "refuse_to_end"}:
            taken.append(step)
            assert len(taken) <= 5, (link, taken)
            progress = after(step, progress, took_effect=took_effect and desired.is_charging)
        assert len(set(taken)) == len(taken) or took_effect, (link, taken)


def after(step: Step, progress: Progress, *, took_effect: bool) -> Progress:
    """As the reconciler notes it."""
    match step:
        case "ensure_customer":
            return replace(progress, customer_written=True)
        case "ensure_subscription":
            return replace(progress, subscription_written=True)
        case "end_subscription":
            return replace(progress, subscription_ended=True)
        case _ if took_effect:
            return replace(progress, checked=True, plan_took_effect=True, subscription_written=False)
    return replace(progress, checked=True)


def test_a_deleted_organization_gets_no_subscription_and_no_check() -> None:
    found = {step for name, _, answers in rows() if name.startswith("deleted") for _, _, step in answers}
    assert found == {"ensure_customer", "end_subscription", "complete"}


def test_a_subscription_is_ended_only_where_none_may_be_and_written_only_where_one_must() -> None:
    for _, desired, answers in rows():
        steps = {step for _, _, step in answers}
        if desired.active and desired.plan_code is not None:
            assert not steps & {"end_subscription", "refuse_to_end"}
        if desired.plan_code is None:
            assert "ensure_subscription" not in steps


def test_a_setting_that_was_lost_ends_nothing() -> None:
    """Only a changed plan, an operator's retry or an end that was begun does."""
    for _, desired, answers in rows():
        for link, progress, step in answers:
            if step == "end_subscription" and desired.active and progress == Progress(customer_written=True):
                asked = link.customer in {"absent", "unconfirmed"}
                assert asked or link.plan == "ending" or link.plan_code not in {None, desired.uncharged_plan_code}


def test_a_create_whose_outcome_is_unknown_is_resolved_first() -> None:
    for _, _, answers in rows():
        for link, progress, step in answers:
            if link.intent == "create_customer" and not progress.customer_written:
                assert step == "ensure_customer"


def test_nothing_is_sent_for_a_link_that_is_in_sync() -> None:
    in_sync = LinkFacts(
        customer="applied",
        fingerprint_matches=True,
        has_subscription=True,
        plan="applied",
        plan_code="pro",
        next_plan_code=None,
        intent="none",
        scheduled_date_known=False,
        check="none",
    )
    assert next_step(in_sync, DESIRED_STATES["pro, charging"], Progress()) == "complete"
    assert next_step(replace(in_sync, check="only"), DESIRED_STATES["pro, charging"], Progress()) == "check"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
