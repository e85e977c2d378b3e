"""Every process connects by the settings, so that none of them refuses or accepts a name on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.db.database import has_unique_names
from worker.config.settings import Settings
from worker.wiring.database import connect

WORKER = Path(__file__).resolve().parents[3] / "worker"


@pytest.mark.parametrize("unique_names", [True, False])
def test_a_connection_follows_the_setting(sqlite_url: str, unique_names: bool) -> None:  # noqa: FBT001 - the setting
    settings = Settings.model_construct(database_url=sqlite_url, unique_organization_names=unique_names)
    database = connect(settings)
    with database.write() as session:
        assert has_unique_names(session) == unique_names
    database.close()


def test_no_process_connects_without_the_settings() -> None:
    own = [
        path.relative_to(WORKER).as_posix() for path in WORKER.rglob("*.py") if " Database(" in path.read_text("utf-8")
    ]
    assert own == ["wiring/database.py"]
