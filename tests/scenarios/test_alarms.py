"""The alerts on the metrics of a real process: quiet while it works, and firing when the provider rejects our key."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from core.org_manager import OrgManager
from sandbox.client import SandboxClient
from tests.support import console, promtool
from tests.support.deployment import free_port
from tests.support.metrics_page import Values, value, values

pytestmark = pytest.mark.processes
SANDBOX_KEY = "sk_test_sandbox"


def test_a_revoked_key_lets_the_alerts_fire(tmp_path: Path) -> None:
    promtool.program()
    folder = console.prepare(tmp_path)
    ports = {"METRICS_PORT": str(free_port()), "API_PORT": str(free_port())}
    with console.running(folder, "up", settings=ports) as up:
        up.wait_for_output("billing-sync status")
        key = console.run(folder, "keys", "create", "prometheus", "--scope", "metrics:read").stdout.strip()

        def scraped() -> Values:
            own = httpx.get(f"http://127.0.0.1:{ports['METRICS_PORT']}/metrics").text
            headers = {"Authorization": f"Bearer {key}"}
            of_rows = httpx.get(f"http://127.0.0.1:{ports['API_PORT']}/metrics", headers=headers).text
            return values(of_rows) | values(own)

        manager = OrgManager(data_dir=folder / "data")
        manager.create_organization("In sync")
        up.until(lambda: value(scraped(), "commit_to_sync_seconds_count", provider="lago") == 1, "it is in sync")
        before = scraped()
        with SandboxClient((folder / "data" / "sandbox.url").read_text().strip()) as client:
            client.settings(revoked_keys=[SANDBOX_KEY])
        manager.create_organization("With a revoked key")
        manager.close()
        breaker = {"provider": "stripe", "reason": "misconfigured"}
        up.until(lambda: value(scraped(), "provider_breaker_open", **breaker) == 1, "the breaker opens")
        after = scraped()
    fire = {"BillingSyncBreakerOpen", "BillingSyncProviderErrors"}
    quiet = {"BillingSyncNoWorker", "BillingSyncNoRelay", "BillingSyncNoApi", "BillingSyncLinksParked"}
    expressions = {name: promtool.rules()[name]["expr"] for name in fire | quiet}
    assert {name for name in expressions if promtool.holds(expressions[name], before, before, tmp_path)} == set()
    assert {name for name in expressions if promtool.holds(expressions[name], before, after, tmp_path)} == fire
