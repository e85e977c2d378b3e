"""An import of the old store's files into SQLite: seconds and memory, at a size and at a tenth of it.

    python -m benchmarks.importing [--organizations 100000]

Ten members each. The baseline of the memory is the tenth; that of the time are the sixty seconds that were asked for.
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

from benchmarks.comparison import Comparison, shown
from tests.worker.deployment import SCRIPT

SECONDS = 60.0
FLAT = 1.2
MEMBERS = 10
PLANS = ("founders_friend", "starter", "professional", "enterprise")


def write_files(folder: Path, organizations: int) -> tuple[Path, Path]:
    """As the old store wrote them; one record after the other, so that writing them takes no memory either."""
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
                "plan_tier": PLANS[number % 4],
                "lago_customer_id": None,
                "stripe_customer_id": f"cus_{number:018x}" if number % 7 == 6 else None,
                "status": "active",
            }
            one.write(f'{comma}\n  "{org_id}": {json.dumps(row)}')
            seats = [
                {
                    "org_id": org_id,
                    "user_id": f"user_{(number * 7 + seat * 13) % (organizations * 3)}_{seat}",
                    "role": "owner" if seat == 0 else "member",
                    "joined_at": created,
                }
                for seat in range(MEMBERS)
            ]
            other.write(f'{comma}\n  "{org_id}": {json.dumps(seats)}')
        one.write("\n}\n")
        other.write("\n}\n")
    return first, second


def run(organizations: int) -> tuple[float, float]:
    """Seconds and the largest memory of one import, in megabytes."""
    with tempfile.TemporaryDirectory(prefix="importing-") as name:
        folder = Path(name)
        files = write_files(folder, organizations)
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{folder / 'imported.db'}", "LOG_LEVEL": "WARNING"}
        started = time.monotonic()
        words = [str(SCRIPT), "import", *map(str, files)]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            message = f"the import ended with {process.returncode}"
            raise AssertionError(message)
        return seconds, _megabytes(used)


def _megabytes(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / 1024


def measure(organizations: int) -> list[Comparison]:
    _, small = run(organizations // 10)
    seconds, large = run(organizations)
    allowed = SECONDS * organizations / 100_000
    size = f"{organizations:,} organizations, {organizations * MEMBERS:,} members"
    return [
        Comparison(
            name=f"import of {size}",
            unit="s",
            figures=[seconds],
            baseline=[allowed],
            against="asked for",
            wanted=1.0,
            smaller=True,
        ),
        Comparison(
            name="its memory",
            unit="MB",
            figures=[large],
            baseline=[small],
            against="of a tenth",
            wanted=FLAT,
            smaller=True,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="An import: seconds and memory.")
    parser.add_argument("--organizations", type=int, default=100_000)
    return shown(measure(parser.parse_args().organizations))


if __name__ == "__main__":
    sys.exit(main())
