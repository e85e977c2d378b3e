"""Import of the predecessor store's files into SQLite: seconds and memory, at one size and at a tenth of it.

    python -m benchmarks.importing [--organizations 100000]

Each organization has ten members. The baseline of the memory is the import of a tenth; that of the time is the required
sixty seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from benchmarks.comparison import Comparison, print_results
from tests.support.deployment import SCRIPT

MAX_IMPORT_SECONDS = 60.0
MAX_MEMORY_RATIO = 1.2
MEMBERS_PER_ORGANIZATION = 10
PLAN_TIERS = ("founders_friend", "starter", "professional", "enterprise")


def write_files(folder: Path, organizations: int) -> tuple[Path, Path]:
    """Write both files as the predecessor did, one record at a time, so that writing them needs no memory either."""
    first, second = folder / "organizations.json", folder / "org_users.json"
    with first.open("w") as one, second.open("w") as other:
        one.write("{")
        other.write("{")
        for number in range(organizations):
            org_id, comma = f"org_{UUID(int=number + (4 << 76) + (8 << 60))}", "," if number else ""
            created = f"2025-03-{1 + number % 28:02} 10:00:07.{number % 1_000_000:06}"
            row = {
                "id": org_id,
                "name": f"Organization {number}",
                "created_at": created,
                "plan_tier": PLAN_TIERS[number % 4],
                "lago_customer_id": None,
                "stripe_customer_id": f"cus_{number:018x}" if number % 7 == 6 else None,
                "status": "active",
            }
            one.write(f'{comma}\n  "{org_id}": {json.dumps(row)}')
            members = [
                {
                    "org_id": org_id,
                    "user_id": f"user_{(number * 7 + number_in_team * 13) % (organizations * 3)}_{number_in_team}",
                    "role": "owner" if number_in_team == 0 else "member",
                    "joined_at": created,
                }
                for number_in_team in range(MEMBERS_PER_ORGANIZATION)
            ]
            other.write(f'{comma}\n  "{org_id}": {json.dumps(members)}')
        one.write("\n}\n")
        other.write("\n}\n")
    return first, second


def run(organizations: int) -> tuple[float, float]:
    """Seconds and peak memory in megabytes of one import."""
    with tempfile.TemporaryDirectory(prefix="importing-") as name:
        folder = Path(name)
        files = write_files(folder, organizations)
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{folder / 'imported.db'}", "LOG_LEVEL": "WARNING"}
        started = time.monotonic()
        command = [str(SCRIPT), "import", *map(str, files)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            message = f"the import ended with {process.returncode}"
            raise AssertionError(message)
        return seconds, _megabytes(usage)


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def measure(organizations: int) -> list[Comparison]:
    _, small = run(organizations // 10)
    seconds, large = run(organizations)
    allowed = MAX_IMPORT_SECONDS * organizations / 100_000
    size = f"{organizations:,} organizations, {organizations * MEMBERS_PER_ORGANIZATION:,} members"
    return [
        Comparison(
            name=f"import of {size}",
            unit="s",
            figures=[seconds],
            baseline=[allowed],
            against="required",
            target=1.0,
            smaller_is_better=True,
        ),
        Comparison(
            name="its memory",
            unit="MB",
            figures=[large],
            baseline=[small],
            against="for a tenth",
            target=MAX_MEMORY_RATIO,
            smaller_is_better=True,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures an import: seconds and memory.")
    parser.add_argument("--organizations", type=int, default=100_000)
    return print_results(measure(parser.parse_args().organizations))


if __name__ == "__main__":
    sys.exit(main())
