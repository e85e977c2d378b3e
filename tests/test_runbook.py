"""The runbook has an entry for every code that can be shown, and what is shown leads to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from core.common import runbook as runbook_links
from core.compare.findings import FindingKind
from core.ports.errors import ErrorKind
from docs import runbook
from docs.meanings import PROBLEM_MEANINGS
from providers.transport.failure_table import FAILURE_RULES
from tests.support.markdown import anchors

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / runbook_links.RUNBOOK).read_text(encoding="utf-8")
ANCHORS = [*anchors(PAGE), *re.findall(r'<a id="([^"]+)">', PAGE)]


def test_every_code_of_a_link_has_an_entry_of_its_own_anchor() -> None:
    listed = {code for rules in FAILURE_RULES.values() for rule in rules for code in rule.match}
    codes = {*runbook.link_codes(), *listed, *get_args(ErrorKind), "import", "waiting_for_payer"}
    assert {code: runbook_links.entry(code) for code in codes if code not in ANCHORS} == {}
    assert {"unknown_plan", "double_charging", "changed_at_provider", "undefined_transition", "empty_name"} <= codes


def test_every_kind_of_problem_and_of_finding_has_an_entry() -> None:
    kinds = {runbook_links.problem_entry(kind) for kind in PROBLEM_MEANINGS}
    assert {kind for kind in kinds if kind.partition("#")[2] not in ANCHORS} == set()
    assert {f"drift-{kind}" for kind in get_args(FindingKind)} - set(ANCHORS) == set()


def test_no_anchor_leads_to_two_entries() -> None:
    assert sorted(ANCHORS) == sorted(set(ANCHORS))


def test_each_entry_says_what_it_means_its_cause_where_to_look_and_what_to_do() -> None:
    for entry in PAGE.split("\n### ")[1:]:
        said = re.findall(r"^- \*\*(\w[\w ]*):\*\* (?:.*[^ ])$", entry, re.MULTILINE)
        assert said == ["Means", "Cause", "Look at", "Do"], entry
