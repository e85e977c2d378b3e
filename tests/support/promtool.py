"""Prometheus's own checker of rules, and the metrics of a process as the values that it checks them on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.metrics_page import Values

ROOT: Final = Path(__file__).resolve().parents[2]
ALERTS: Final = ROOT / "deploy/prometheus/alerts.yml"
ALERTS_TEST: Final = ROOT / "deploy/prometheus/alerts_test.yml"
SCRAPES: Final = 20  # one a minute


def rules() -> dict[str, dict[str, Any]]:
    """Each alert by its name."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def installed() -> str | None:
    beside_python = Path(sys.executable).with_name("promtool")
    return str(beside_python) if beside_python.exists() else shutil.which("promtool")


def program() -> str:
    found = installed()
    if found is None:
        pytest.skip("promtool is not installed (make promtool)")
    return found


def check(test_file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(), "test", "rules", test_file.name], cwd=test_file.parent, capture_output=True, text=True, check=False
    )


def holds(expression: str, before: Values, after: Values, folder: Path) -> bool:
    """Whether the expression of an alert has a result, once the metrics went from ``before`` to ``after``."""
    document = {
        "rule_files": [],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": _series(*key), "values": f"{before.get(key, 0.0)} {value}x{SCRAPES}"}
                    for key, value in after.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"clamp_max(count({expression}), 1)",
                        "eval_time": "2m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    file = folder / "real_metrics_test.yml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    ended = check(file)
    assert ended.returncode == 0 or "got:" in ended.stdout + ended.stderr, ended.stdout + ended.stderr
    return ended.returncode == 0


def _series(name: str, labels: frozenset[tuple[str, str]]) -> str:
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in sorted(labels)) + "}"
