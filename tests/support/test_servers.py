"""What the tests start for themselves ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from tests.support import servers
from tests.support.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("tests/support/run_that_never_ends.py")
NAMED = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", servers.KEPT)


def answers(postgres: str, valkey: str) -> bool:
    """Whether at least one of the two servers does."""
    try:
        psycopg.connect(postgres).close()
    except psycopg.OperationalError:
        with redis.Redis.from_url(valkey) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False
    return True


@pytest.mark.processes
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "with a worker"])
def test_term_ends_the_run_and_its_servers(tmp_path: Path, workers: tuple[str, ...]) -> None:
    started = tmp_path / "servers"
    environment = {name: value for name, value in os.environ.items() if name not in NAMED}
    command = [sys.executable, "-m", "pytest", *workers, "-p", "no:cacheprovider", str(RUN)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | {"TELLS_ITS_SERVERS_TO": str(started)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            until(started.exists, "the servers run")
            postgres, valkey = started.read_text().splitlines()
            with psycopg.connect(postgres), redis.Redis.from_url(valkey) as client:
                client.ping()
            run.send_signal(signal.SIGTERM)
            output, _ = run.communicate(timeout=PATIENCE_SECONDS)
        finally:
            run.kill()
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    until(lambda: not answers(postgres, valkey), "both servers end; a worker stops them after the run has ended")
