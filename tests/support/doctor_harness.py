"""A set-up in which `doctor` finds nothing to do, for tests that break one thing of it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from core.catalog import publishing
from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.reporting import heartbeats
from core.reporting.heartbeats import ProcessKind, ProcessStart
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from worker.config import api as api_settings
from worker.config import names
from worker.config import settings as settings_of
from worker.doctor import registry
from worker.doctor.findings import DoctorFinding
from worker.doctor.inputs import DoctorInputs

VERSION = importlib.metadata.version("billing-sync")
STRIPE_SECRET = "whsec_4f1b9c0e7a2d83h6"
LAGO_SECRET = "hmac-4f1b9c0e7a2d83h6"
OUR_API = "http://127.0.0.1:8080"


@dataclass
class DoctorHarness:
    """A folder, a SQLite file and the sandbox. ``environment`` is what the processes get."""

    folder: Path
    sandbox: SandboxClient
    sandbox_url: str
    plans: Catalog
    environment: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.environment.chdir(self.folder)
        for name in names.known_names() & {each.upper() for each in os.environ}:
            self.environment.delenv(name)
        shutil.copy(DEFAULT_PLANS_FILE, self.folder)
        self.sandbox.set_webhooks(
            stripe={"url": f"{OUR_API}/webhooks/stripe", "secret": STRIPE_SECRET},
            lago={"url": f"{OUR_API}/webhooks/lago", "secret": LAGO_SECRET},
        )
        self.set(
            {
                "DATABASE_URL": f"sqlite:///{self.database_file}",
                "DATA_DIR": str(self.folder),
                "STRIPE_SECRET_KEY": "sk_test_doctor",
                "STRIPE_API_BASE": self.sandbox_url,
                "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
                "LAGO_API_KEY": "key",
                "LAGO_API_URL": self.sandbox_url,
                "LAGO_STRIPE_PROVIDER_CODE": "stripe_main",
                "LAGO_WEBHOOK_SECRET": LAGO_SECRET,
            }
        )

    @property
    def database_file(self) -> Path:
        return self.folder / "billing-sync.db"

    def set(self, settings: Mapping[str, str | None]) -> None:
        """``None`` removes one."""
        for name, value in settings.items():
            if value is None:
                self.environment.delenv(name, raising=False)
            else:
                self.environment.setenv(name, value)

    def database(self) -> Database:
        return Database(f"sqlite:///{self.database_file}")

    def beats(self, *kinds: ProcessKind, version: str = VERSION, at: datetime | None = None) -> None:
        """These processes have just written their heartbeats."""
        database, now = self.database(), at or utc_now()
        with database.write() as session:
            for kind in kinds:
                process = ProcessStart(
                    instance_id=f"{kind}-{version}", kind=kind, host="host-1", version=version, started_at=now
                )
                heartbeats.record(session, process, now)
        database.close()

    def publish_plans(self) -> None:
        lago = LagoProvider(self.sandbox_url, "key", payment_provider_code=None, ending=self.plans.ending)
        publishing.publish(self.plans, [lago])
        lago.close()

    def examine(self, subject: str) -> list[DoctorFinding]:
        """What one check finds with the settings as they are now."""
        inputs = DoctorInputs(settings=settings_of.read(), api_settings=api_settings.read(), version=VERSION)
        return list(registry.CHECKS[subject](inputs))
