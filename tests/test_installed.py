"""The wheel holds everything that the program needs: it runs in an empty folder, without the checkout.

The packages that it depends on are those of this interpreter. Its ``.pth`` files are not read (``-S``), because one of
them names the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.catalog.plans import DEFAULT_PLANS_FILE
from tests.support import console

ROOT = console.ROOT
EXAMPLE = """
from core.org_manager import OrgManager
manager = OrgManager(data_dir="data")
org_id = manager.create_organization("Acme Corporation", plan_tier="{tier}")
print(manager.get_org(org_id).plan_tier)
"""


@dataclass(frozen=True)
class Installed:
    site: Path

    def run(self, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(self.site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=folder,
            env={**console.environment(settings), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built from a copy, because a build leaves files where it runs."""
    folder = tmp_path_factory.mktemp("installed")
    source, site = folder / "source", folder / "site"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, check=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built)], check=True)
    return Installed(site)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "end"),
    [("demo", "All 6 organizations are in sync"), ("demo-adopt", "Nothing else was written to what was there")],
)
def test_the_demos_run_where_the_package_is_installed(
    installed: Installed, tmp_path: Path, command: str, end: str
) -> None:
    shown = installed.run(tmp_path, str(installed.site / "bin" / "billing-sync"), command)
    assert shown.returncode == 0, shown.stderr
    assert end in shown.stdout


@pytest.mark.processes
def test_a_program_that_imports_it_uses_the_default_catalog(installed: Installed, tmp_path: Path) -> None:
    ended = installed.run(tmp_path, "-c", EXAMPLE.format(tier="starter"))
    assert (ended.returncode, ended.stdout) == (0, "starter\n"), ended.stderr
    found = installed.run(tmp_path, "-c", "import core.org_manager; print(core.org_manager.__file__)")
    assert found.stdout.startswith(str(installed.site))


@pytest.mark.processes
def test_a_program_that_imports_it_uses_its_own_catalog_if_it_has_one(installed: Installed, tmp_path: Path) -> None:
    text = DEFAULT_PLANS_FILE.read_text().replace("[plans.starter]", "[plans.small]")
    (tmp_path / "ours.toml").write_text(text)
    ended = installed.run(tmp_path, "-c", EXAMPLE.format(tier="small"), PLANS_FILE="ours.toml")
    assert (ended.returncode, ended.stdout) == (0, "small\n"), ended.stderr
    status = installed.run(tmp_path, str(installed.site / "bin" / "billing-sync"), "orgs", "--json")
    assert '"plan_tier": "small"' in status.stdout, status.stderr
