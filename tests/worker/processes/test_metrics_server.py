"""``/metrics`` of a process: off unless asked for, only for this machine, and never in the way of the work."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import free_port
from tests.support.metrics_page import value, values
from worker.config.settings import Settings, SettingsError
from worker.processes import metrics_server
from worker.processes.metrics_server import SCRAPE_SECONDS


def settings_with(folder: Path, port: int | None) -> Settings:
    return Settings(data_dir=folder, metrics_port=port)


def test_nothing_is_served_without_the_setting(tmp_path: Path) -> None:
    assert Settings().metrics_port is None
    with metrics_server.serve(settings_with(tmp_path, None), "worker") as registry:
        assert next(iter(registry.collect())).name == "billing_sync_build"


def test_the_page_says_what_the_process_is_and_only_this_machine_reads_it(tmp_path: Path) -> None:
    port = free_port()
    with metrics_server.serve(settings_with(tmp_path, port), "relay"):
        found = values(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    (labels,) = [dict(labels) for (name, labels) in found if name == "billing_sync_build_info"]
    assert labels["process"] == "relay"
    free, size = value(found, "disk_free_bytes"), value(found, "disk_size_bytes")
    assert free is not None
    assert size is not None
    assert 0 < free <= size
    assert found["process_resident_memory_bytes", frozenset()] > 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_a_port_in_use_is_one_sentence_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SettingsError, match=rf"METRICS_PORT: .* 127\.0\.0\.1:{port} .*its own METRICS_PORT"),
            metrics_server.serve(settings_with(tmp_path, port), "worker"),
        ):
            pytest.fail("it started")


@pytest.mark.slow
def test_a_client_that_sends_nothing_is_cut_off(tmp_path: Path) -> None:
    port = free_port()
    with (
        metrics_server.serve(settings_with(tmp_path, port), "worker"),
        socket.create_connection(("127.0.0.1", port), timeout=SCRAPE_SECONDS * 4) as silent,
    ):
        assert silent.recv(1) == b""
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
