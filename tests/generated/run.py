"""``make generated SEED=1``: ten thousand generated messages and requests, and what became of each in one line.

    python -m tests.generated.run [--seed 1] [--messages 10000] [--requests 10000] [--seconds 1800]

The messages are sent to the queue while the requests go to the API. Exit code 1 if a process ended, a message was lost
without a row, or a request got no answer or one of 5xx that the API's document does not name.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from core.catalog import plans as plan_catalog
from sandbox.server import Sandbox
from tests.generated import ledger, system
from tests.generated.http_client import GeneratedRequest, RawAnswer, send
from tests.generated.ledger import MessageAccount
from tests.generated.messages import GeneratedMessage, MessageGenerator
from tests.generated.population import MEMBERS
from tests.generated.requests import RequestGenerator
from tests.generated.system import QueueWriter, SystemUnderTest
from tests.support import servers

MESSAGES: Final = 10_000
REQUESTS: Final = 10_000
SECONDS: Final = 1_800.0
CALLERS_AT_ONCE: Final = 4
# A sender waits while this many are in the queue: else all would be there before the first request.
LONGEST_QUEUE: Final = 500
SHOWN: Final = 20
NO_PROGRESS_SECONDS: Final = 45.0
POLL_SECONDS: Final = 0.1
# What the document names: the database or the sign-in service did not respond.
DOCUMENTED: Final = 503

Say = Callable[[str], None]


@dataclass(kw_only=True)
class AnswerCounts:
    """``unexpected``: one line for each request without an answer, or with an answer of 5xx that is not documented."""

    sent: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    unavailable: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: GeneratedRequest, answer: RawAnswer | Exception) -> None:
        with self._lock:
            self.sent += 1
            if isinstance(answer, Exception):
                self.classes["no answer"] += 1
                self.unexpected.append(f"{type(answer).__name__}: {request.shown}")
                return
            self.classes[f"{answer.status // 100}xx"] += 1
            self.operations[request.operation] += answer.status < 400
            if answer.status == DOCUMENTED:
                self.unavailable[_detail(answer)] += 1
            elif answer.status >= 500:
                self.unexpected.append(f"{answer.status}: {request.shown} {answer.body[:200]!r}")

    @property
    def line(self) -> str:
        return ", ".join(f"{self.classes[each]:,} {each}" for each in sorted(self.classes))

    @property
    def never_successful(self) -> list[str]:
        """The operations that were requested and always refused."""
        return sorted(operation for operation, successes in self.operations.items() if not successes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedReport:
    account: MessageAccount
    answers: AnswerCounts
    ended: list[str]
    problems: list[str]

    @property
    def line(self) -> str:
        failures = len(self.answers.unexpected)
        return (
            f"{self.account.messages:,} messages: {len(self.ended)} processes ended, {self.account.lost} lost without "
            f"a row ({self.account.line}); {self.answers.sent:,} requests: {failures} answers of 5xx or none "
            f"({self.answers.line})"
        )


def play(under_test: SystemUnderTest, seed: int, messages: int, requests: int, seconds: float) -> GeneratedReport:
    """Send all, wait until the queue is drained, and compare."""
    until = time.monotonic() + seconds
    tiers = plan_catalog.load().tiers()
    generated = list(MessageGenerator(seed, tiers, under_test.population.org_ids[:4]).generate(messages))
    document: dict[str, Any] = httpx.get(f"http://127.0.0.1:{under_test.port}/openapi.json", timeout=60).json()
    ids = _ids(under_test, seed, tiers)
    generator = RequestGenerator(seed, document, ids, under_test.callers(), system.secrets())
    with ThreadPoolExecutor(CALLERS_AT_ONCE + 1) as pool:
        writing = pool.submit(_send_messages, under_test, generated, until)
        answers = AnswerCounts()
        numbers = iter(range(1, requests + 1))
        lock = threading.Lock()
        callers = [pool.submit(_send_requests, under_test, generator, answers, numbers, lock, until) for _ in range(4)]
        problems = writing.result()
        for caller in callers:
            caller.result()
    if answers.sent < requests:
        problems.append(f"only {answers.sent} of {requests} requests were sent in {seconds:.0f} s")
    problems += _drain(under_test, until)
    counted = ledger.account(generated, ledger.stored_events(under_test.database), under_test.dropped())
    ended = under_test.ended()
    if not under_test.is_well():
        problems.append("/healthz does not answer 200")
    problems += [*ended, *counted.problems, *answers.unexpected, *_failed_tasks(under_test)]
    return GeneratedReport(account=counted, answers=answers, ended=ended, problems=problems)


def _ids(under_test: SystemUnderTest, seed: int, tiers: Sequence[str]) -> dict[str, list[str]]:
    """Values that a request can succeed with, by the name of the field or the parameter."""
    newcomers = [f"newcomer {number}" for number in range(200)]
    return {
        **{name: list(values) for name, values in under_test.population.ids.items()},
        "org_id": [*under_test.population.org_ids, *(f"org_generated_{seed}_{number}" for number in range(5))],
        "user_id": [*MEMBERS, *newcomers[: len(MEMBERS)]],
        "owner_user_id": newcomers,
        "name": [f"Named {number}" for number in range(3_000)],
        "billing_email": ["billing@generated.test"],
        "email": [f"invited{number}@generated.test" for number in range(200)],
        "currency": ["USD"],
        **{name: list(tiers) for name in ("tier", "plan_tier", "target_tier")},
        "cursor": [],
        "X-Organization-ID": list(under_test.population.org_ids),
    }


def _send_messages(under_test: SystemUnderTest, messages: Sequence[GeneratedMessage], until: float) -> list[str]:
    writer = QueueWriter(under_test.broker)
    try:
        for number, message in enumerate(messages):
            while number % 50 == 0 and under_test.waiting_messages() > LONGEST_QUEUE:
                if time.monotonic() > until or under_test.ended():
                    return [f"only {number} of {len(messages)} messages were sent"]
                time.sleep(POLL_SECONDS)
            writer.put(message)
    finally:
        writer.close()
    return []


def _send_requests(  # noqa: PLR0913, PLR0917 - what the threads share
    under_test: SystemUnderTest,
    generator: RequestGenerator,
    answers: AnswerCounts,
    numbers: Any,  # noqa: ANN401 - an iterator
    lock: threading.Lock,
    until: float,
) -> None:
    while time.monotonic() < until:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        request = generator.generate(number)
        try:
            answer = send(under_test.port, request)
            answers.add(request, answer)
            if answer.status < 300:
                generator.learn(answer.body)
        except (OSError, http.client.HTTPException) as error:
            answers.add(request, error)


def _drain(under_test: SystemUnderTest, until: float) -> list[str]:
    last, changed = -1, time.monotonic()
    while (waiting := under_test.waiting_messages()) and not under_test.ended():
        if waiting != last:
            last, changed = waiting, time.monotonic()
        if time.monotonic() > min(until, changed + NO_PROGRESS_SECONDS):
            return [f"{waiting} messages are still in the queue, or with a worker that does not finish them"]
        time.sleep(POLL_SECONDS)
    return []


def _failed_tasks(under_test: SystemUnderTest) -> list[str]:
    """An error that no task expects is a defect, also if the message has its row."""
    lines = [line for line in under_test.deployed.logs.splitlines() if "raised unexpected" in line]
    return [f"a task failed: {line[:400]}" for line in lines]


def _detail(answer: RawAnswer) -> str:
    try:
        return str(json.loads(answer.body)["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.body[:200].decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.generated.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the time after which the run ends anyway")
    parser.add_argument("--log", type=Path, help="folder for the logs of the processes; default: none is kept")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="generated-") as folder,
        servers.postgres() as postgres,
        servers.database(postgres) as url,
        servers.redis() as broker,
        Sandbox(limits=False) as sandbox,
        system.running(url, broker, sandbox, plan_catalog.load(), asked.log or Path(folder)) as under_test,
    ):
        report = play(under_test, asked.seed, asked.messages, asked.requests, asked.seconds)
    tell(report, _say)
    return 1 if report.problems else 0


def tell(report: GeneratedReport, say: Say) -> None:
    never = report.answers.never_successful
    say(f"{len(report.answers.operations)} operations, always refused: {', '.join(never) or 'none'}")
    for detail, times in report.answers.unavailable.most_common():
        say(f"503, {times:,} times: {detail}")
    for problem in report.problems[:SHOWN]:
        say(f"  ✗ {problem}")
    if len(report.problems) > SHOWN:
        say(f"  … and {len(report.problems) - SHOWN:,} more")
    say(report.line)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
