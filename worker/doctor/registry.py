"""All checks in the order in which an operator needs them. They run at the same time, each for a limited time.

An error in a check itself is a finding of that check, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotFinishedError
from dataclasses import dataclass
from typing import Final

from worker.doctor import (
    backups,
    broker,
    database,
    disk,
    keys,
    links,
    plans,
    processes,
    provider_servers,
    provider_webhooks,
    rights,
    services,
    settings,
)
from worker.doctor.findings import DoctorFinding, error, not_checked
from worker.doctor.inputs import DoctorInputs

# Each check is bounded by time-outs of its own, which are shorter. Only resolving a host name may take longer.
DOCTOR_SECONDS: Final = 25.0

Check = Callable[[DoctorInputs], Iterable[DoctorFinding]]

CHECKS: Final[dict[str, Check]] = {
    "settings": settings.check,
    "database": database.check,
    "processes": processes.check,
    "links": links.check,
    "keys": keys.check,
    "rights": rights.check,
    "plans": plans.check,
    "payer": plans.check_payer,
    "broker": broker.check,
    "redis": broker.check_redis,
    "provider webhooks": provider_webhooks.check,
    "clocks and Lago": provider_servers.check,
    "sign-in": services.check_sign_in,
    "emails": services.check_emails,
    "webhooks": services.check_outbound_webhooks,
    "event sources": services.check_event_sources,
    "disk": disk.check,
    "backups": backups.check,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectReport:
    """What one check found: at least one finding."""

    subject: str
    findings: list[DoctorFinding]


def run(inputs: DoctorInputs, checks: Mapping[str, Check] = CHECKS) -> list[SubjectReport]:
    """Run all checks. Ends within ``DOCTOR_SECONDS``, or reports what did not."""
    ends_at = time.monotonic() + DOCTOR_SECONDS
    executor = ThreadPoolExecutor(len(checks), thread_name_prefix="doctor")
    try:
        started = {subject: executor.submit(_run, check, inputs) for subject, check in checks.items()}
        return [
            SubjectReport(subject=subject, findings=_result(future, ends_at)) for subject, future in started.items()
        ]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _run(check: Check, inputs: DoctorInputs) -> list[DoctorFinding]:
    return list(check(inputs))


def _result(future: Future[list[DoctorFinding]], ends_at: float) -> list[DoctorFinding]:
    try:
        failure = future.exception(timeout=max(0.0, ends_at - time.monotonic()))
    except NotFinishedError:
        return [not_checked("timed_out", f"it took longer than {DOCTOR_SECONDS:.0f} s")]
    if failure is None:
        return future.result()
    # Its text may contain anything, so only the class is shown.
    message = f"the check itself failed ({type(failure).__name__})"
    return [error("check_failed", message, "nothing is known about it", "report it as a bug, with this line")]
