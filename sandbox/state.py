"""The state of one sandbox: its clock, the objects of both providers, the pending faults and the call log."""

from dataclasses import asdict
from pathlib import Path

from sandbox.calls import CallLog
from sandbox.clock import SandboxClock, TimerQueue
from sandbox.faults import FaultPlan
from sandbox.http import JsonDocument
from sandbox.ledger import Ledger
from sandbox.settings import SandboxSettings
from sandbox.store import SandboxStore
from sandbox.webhooks import WebhookSender


class SandboxState:
    def __init__(self, *, limits: bool = True, state_file: Path | None = None) -> None:
        self._limits = limits
        self.clock = SandboxClock()
        self.timers = TimerQueue(self.clock)
        self.store = SandboxStore(self.timers, state_file)
        self.settings = SandboxSettings(limits=limits)
        self.faults = FaultPlan()
        self.calls = CallLog()
        self.webhooks = WebhookSender()
        self.ledger = Ledger(self.store, self.clock)
        self._saved = self.store.table("world")

    def open(self) -> None:
        self.store.open()
        if (clock := self._saved.get("clock")) is not None:
            self.clock.offset = float(clock["offset"])
        if (settings := self._saved.get("settings")) is not None:
            self.settings.update(settings)
        if (webhooks := self._saved.get("webhooks")) is not None:
            self.webhooks.configure(webhooks)
        self.tick()

    def tick(self) -> None:
        """Run what has become due since the last call."""
        self.timers.run_due()

    def save(self) -> None:
        """Store the clock and the settings with the objects."""
        self._saved.put("clock", {"offset": self.clock.offset})
        self._saved.put("settings", self.settings.document())
        self.store.commit()

    def set_webhooks(self, endpoints: JsonDocument) -> None:
        self.webhooks.configure(endpoints)
        self._saved.put("webhooks", {name: asdict(endpoint) for name, endpoint in self.webhooks.endpoints.items()})
        self.store.commit()

    def reset(self) -> None:
        self.store.clear()
        self.faults.clear()
        self.calls.clear()
        self.webhooks.clear()
        self.clock.offset = 0.0
        self.settings = SandboxSettings(limits=self._limits)
        self.save()

    def close(self) -> None:
        self.webhooks.close()
        self.store.close()
