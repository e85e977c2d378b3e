"""A set-up for the doctor in which all is well."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.doctor_harness import DoctorHarness


@pytest.fixture
def folder_with_database(tmp_path: Path, sqlite_template: Path) -> Path:
    shutil.copy(sqlite_template, tmp_path)
    return tmp_path


@pytest.fixture
def set_up(
    folder_with_database: Path,
    sandbox: SandboxClient,
    sandbox_server: Sandbox,
    plans: Catalog,
    monkeypatch: pytest.MonkeyPatch,
) -> DoctorHarness:
    return DoctorHarness(folder_with_database, sandbox, sandbox_server.url, plans, monkeypatch)
