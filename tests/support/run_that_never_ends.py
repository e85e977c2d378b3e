"""A run for ``test_servers.py``, which stops it. Its name keeps it out of every other run."""

from __future__ import annotations

import os
import time
from pathlib import Path


def test_that_waits(postgres_server: str, redis_server: str) -> None:
    told = Path(os.environ["TELLS_ITS_SERVERS_TO"])
    told.with_suffix(".new").write_text(f"{postgres_server}\n{redis_server}\n")
    told.with_suffix(".new").rename(told)
    time.sleep(3600)
