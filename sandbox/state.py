"""One world per sandbox: the clock, the objects of both billers, the faults to come and the calls that were."""

from dataclasses import asdict
from pathlib import Path

from sandbox.calls import CallLog
from sandbox.clock import Agenda, Clock
from sandbox.faults import FaultPlan
from sandbox.http import Doc
from sandbox.ledger import Ledger
from sandbox.settings import Settings
from sandbox.store import Store
from sandbox.webhooks import Webhooks


class World:
    def __init__(self, *, limits: bool = True, state: Path | None = None) -> None:
        self._limits = limits
        self.clock = Clock()
        self.agenda = Agenda(self.clock)
        self.store = Store(self.agenda, state)
        self.settings = Settings(limits=limits)
        self.faults = FaultPlan()
        self.calls = CallLog()
        self.webhooks = Webhooks()
        self.ledger = Ledger(self.store, self.clock)
        self._kept = self.store.table("world")

    def open(self) -> None:
        self.store.open()
        if (clock := self._kept.get("clock")) is not None:
            self.clock.offset = float(clock["offset"])
        if (settings := self._kept.get("settings")) is not None:
            self.settings.change(settings)
        if (webhooks := self._kept.get("webhooks")) is not None:
            self.webhooks.set(webhooks)
        self.tick()

    def tick(self) -> None:
        """What the running clock made due since the last call happens now."""
        self.agenda.run()

    def keep(self) -> None:
        """Clock and settings are part of the state."""
        self._kept.put("clock", {"offset": self.clock.offset})
        self._kept.put("settings", self.settings.document())
        self.store.commit()

    def set_webhooks(self, wanted: Doc) -> None:
        self.webhooks.set(wanted)
        self._kept.put("webhooks", {name: asdict(endpoint) for name, endpoint in self.webhooks.endpoints.items()})
        self.store.commit()

    def reset(self) -> None:
        self.store.clear()
        self.faults.clear()
        self.calls.clear()
        self.webhooks.clear()
        self.clock.offset = 0.0
        self.settings = Settings(limits=self._limits)
        self.keep()

    def close(self) -> None:
        self.webhooks.close()
        self.store.close()
