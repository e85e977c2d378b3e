"""The whole document, held against the API by generated requests: no server error, no answer that it does not name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.common.clock import utc_now
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from tests.support.api_client import Api

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
# The one that the document's examples name.
EXAMPLE = "org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"
SECONDS = 240  # half a minute where nothing else runs

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]


def make_example(api: Api) -> None:
    with api.database.write() as session:
        change = ChangeContext(session, utc_now())
        new = NewOrganization(name="Example", plan_tier="professional", org_id=EXAMPLE)
        organization = commands.create(change, new, api.catalog)
        for user_id in ("ann", "bob"):
            memberships.add(change, organization, user_id, "owner")
        memberships.add(change, organization, "user_1", "member")


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    ("caller", "phases"), [("owner", "examples,fuzzing"), ("service", "examples,coverage,fuzzing")]
)
def test_every_answer_to_generated_requests_is_one_that_the_document_names(
    api: Api, caller: str, phases: str, tmp_path: Path
) -> None:
    make_example(api)
    headers = api.as_("ann") if caller == "owner" else api.as_service()
    token = headers["Authorization"].removeprefix("Bearer ")
    program = str(Path(sys.executable).with_name("schemathesis"))
    ran = subprocess.run(
        [program, "--config-file", str(CONFIG), "--no-color", "run", f"{api.url}/openapi.json", "--phases", phases],
        cwd=tmp_path,
        env={**os.environ, "API_TOKEN": token, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]
    assert "Fuzzing" in ran.stdout
