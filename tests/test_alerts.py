"""The alerts of ``deploy/prometheus``: each fires and ends, names only what we export, and says what to type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support import promtool
from tests.support.markdown import anchors
from worker.cli.app import all_commands

METRICS_PAGE: Final = promtool.ROOT / "docs/reference/metrics.md"
OF_PROMETHEUS: Final = {"instance"}
RULES: Final = promtool.rules()


def alert_tests() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load(promtool.ALERTS_TEST.read_text(encoding="utf-8"))
    return {each["name"]: each for each in document["tests"]}


def exported() -> dict[str, set[str]]:
    """The labels of each metric, by the page that is generated from the code."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", METRICS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: {label.strip() for label in labels.split(",") if label.strip()} for name, labels in rows}


def test_each_alert_fires_and_ends() -> None:
    ended = promtool.check(promtool.ALERTS_TEST)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("expression", ["vector(1) > 2", "vector(1)"])
def test_an_alert_that_never_fires_or_never_ends_is_found(tmp_path: Path, expression: str) -> None:
    broken = [{**rule, "expr": expression} for rule in RULES.values()]
    groups = {"groups": [{"name": "broken", "rules": broken}]}
    (tmp_path / promtool.ALERTS.name).write_text(yaml.safe_dump(groups), encoding="utf-8")
    copied = tmp_path / promtool.ALERTS_TEST.name
    copied.write_text(promtool.ALERTS_TEST.read_text(encoding="utf-8"), encoding="utf-8")
    ended = promtool.check(copied)
    assert ended.returncode != 0
    found = set(re.findall(r'expr: "ALERTS\{alertname=\\"(\w+)\\"', ended.stdout + ended.stderr))
    assert found == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_each_alert_is_tested_before_while_and_after_it_holds(name: str) -> None:
    samples = [bool(each["exp_samples"]) for each in alert_tests()[name]["promql_expr_test"]]
    assert (samples[0], True in samples, samples[-1]) == (False, True, False)
    assert set(alert_tests()) == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_an_alert_names_only_metrics_and_labels_that_we_export(name: str) -> None:
    expression, known = RULES[name]["expr"], exported()
    named = re.findall(r"\b(billing_sync_\w+)(?:\{([^}]*)\})?", expression)
    assert named
    for metric, matchers in named:
        assert metric in known
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[metric] | OF_PROMETHEUS
    of_all = set.union(OF_PROMETHEUS, *(known[metric] for metric, _ in named))
    replaced = set(re.findall(r'label_replace\(.*?, "(\w+)"', expression))
    for listed in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in listed.split(",")} <= of_all | replaced


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_holds_why_it_matters_and_what_to_type(name: str) -> None:
    annotations = RULES[name]["annotations"]
    assert set(annotations) == {"summary", "description", "command", "runbook"}
    document, _, heading = annotations["runbook"].partition("#")
    assert (promtool.ROOT / document).is_file()
    assert heading in anchors((promtool.ROOT / document).read_text(encoding="utf-8"))
    assert RULES[name]["labels"]["severity"] in {"warning", "critical"}
    for command in re.findall(r"billing-sync ([a-z]+)", annotations["command"]):
        assert command in all_commands().commands
