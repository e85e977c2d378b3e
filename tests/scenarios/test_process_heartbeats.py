"""Each process of a deployment is listed while it runs, in `status` and for `doctor`, and not after it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.server import Sandbox
from tests.support.deployment import deployment, free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def test_worker_relay_beat_and_api_are_listed_while_they_run(
    sqlite_url: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    with deployment(sqlite_url, redis_url, sandbox_server.url, tmp_path) as deployed:

        def listed() -> list[str]:
            document = json.loads(deployed.run("status", "--json").stdout)
            return [process["kind"] for process in document["processes"]]

        assert deployed.run("db", "upgrade").returncode == 0
        assert listed() == []
        deployed.environment["API_PORT"] = str(free_port())
        processes = [deployed.start(kind) for kind in ("worker", "relay", "beat", "api")]
        until(lambda: listed() == ["api", "beat", "relay", "worker"], "four heartbeats", seconds=240)
        found = json.loads(deployed.run("doctor", "--json").stdout)
        (report,) = [each for each in found["subjects"] if each["subject"] == "processes"]
        assert [finding["level"] for finding in report["findings"]] == ["ok"]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(120)
        assert listed() == []
