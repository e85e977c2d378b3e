"""Storage of the sandbox's objects: in memory, and in an append-only file if a path is given.

``commit`` writes the changes of one request as one line. After a kill -9 a request is therefore stored completely or
not at all, and its cost does not grow with the state. The file is compacted when it is opened.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from sandbox.clock import TimerQueue
from sandbox.http import JsonDocument

IndexKey = Callable[[JsonDocument], str | None]
DueTime = Callable[[JsonDocument], float | None]
DueHandler = Callable[[JsonDocument, float], None]


class StoreTable:
    """Documents by key, in order of arrival, with the indexes that the lists need.

    A document may be changed in place; the change is stored by the next ``put``.
    """

    def __init__(self, name: str, store: "SandboxStore", indexes: Mapping[str, IndexKey]) -> None:
        self.name = name
        self._store = store
        self._rows: dict[str, JsonDocument] = {}
        self._indexes = dict(indexes)
        self._keys_by_index: dict[str, dict[str, dict[str, None]]] = {name: {} for name in indexes}
        self._index_entries: dict[str, tuple[tuple[str, str], ...]] = {}
        self._due_at: DueTime | None = None
        self._on_due: DueHandler | None = None

    def schedule(self, due_at: DueTime, on_due: DueHandler) -> None:
        """Call ``on_due`` with a document at its time ``due_at``; ``on_due`` must change that time."""
        self._due_at, self._on_due = due_at, on_due

    def get(self, key: str) -> JsonDocument | None:
        return self._rows.get(key)

    def put(self, key: str, row: JsonDocument) -> None:
        self.load(key, row)
        self._store.record_change(self.name, key, row)

    def delete(self, key: str) -> None:
        self.load(key, None)
        self._store.record_change(self.name, key, None)

    def load(self, key: str, row: JsonDocument | None) -> None:
        for index, value in self._index_entries.pop(key, ()):
            keys = self._keys_by_index[index][value]
            del keys[key]
            if not keys:
                del self._keys_by_index[index][value]
        if row is None:
            self._rows.pop(key, None)
            return
        self._rows[key] = row
        entries = tuple(
            (index, entry) for index, index_key in self._indexes.items() if (entry := index_key(row)) is not None
        )
        for index, entry in entries:
            self._keys_by_index[index].setdefault(entry, {})[key] = None
        if entries:
            self._index_entries[key] = entries
        self._add_timer(key, row)

    def find_by(self, index: str, value: str) -> list[JsonDocument]:
        """Oldest change first."""
        return [self._rows[key] for key in self._keys_by_index[index].get(value, ())]

    def __iter__(self) -> Iterator[JsonDocument]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def items(self) -> Iterator[tuple[str, JsonDocument]]:
        return iter(self._rows.items())

    def oldest(self) -> tuple[str, JsonDocument] | None:
        return next(iter(self._rows.items()), None)

    def clear(self) -> None:
        for key in list(self._rows):
            self.delete(key)

    def _add_timer(self, key: str, row: JsonDocument) -> None:
        if self._due_at is None or (due_at := self._due_at(row)) is None:
            return
        self._store.timers.add(due_at, lambda at: self._run_due(key, at))

    def _run_due(self, key: str, due_at: float) -> None:
        row = self._rows.get(key)
        # If the object has changed since this timer was set, a newer timer replaces this one.
        if row is not None and self._due_at is not None and self._on_due is not None and self._due_at(row) == due_at:
            self._on_due(row, due_at)


class SandboxStore:
    def __init__(self, timers: TimerQueue, path: Path | None = None) -> None:
        self.timers = timers
        self._tables: dict[str, StoreTable] = {}
        self._changes: dict[tuple[str, str], JsonDocument | None] = {}
        self._path = path
        self._journal: TextIO | None = None

    def table(self, name: str, **indexes: IndexKey) -> StoreTable:
        self._tables[name] = StoreTable(name, self, indexes)
        return self._tables[name]

    def record_change(self, table: str, key: str, row: JsonDocument | None) -> None:
        if self._path is not None:
            self._changes[table, key] = row

    def open(self) -> None:
        """Read the file of an earlier run and compact it. Call this after all tables are created.

        Rows of a table that only an older version had are dropped.
        """
        if self._path is None:
            return
        for line in _complete_lines(self._path):
            for name, key, row in line:
                if name in self._tables:
                    self._tables[name].load(key, row)
        compacted = self._path.with_name(self._path.name + ".new")
        with compacted.open("w", encoding="utf-8") as file:
            for name, table in self._tables.items():
                for key, row in table.items():
                    file.write(json.dumps([[name, key, row]]) + "\n")
        compacted.replace(self._path)
        self._journal = self._path.open("a", encoding="utf-8")

    def commit(self) -> None:
        if self._journal is None or not self._changes:
            return
        changed = [[table, key, row] for (table, key), row in self._changes.items()]
        self._changes.clear()
        self._journal.write(json.dumps(changed) + "\n")
        self._journal.flush()  # to the kernel: enough to survive kill -9, without waiting for the disk

    def clear(self) -> None:
        for table in self._tables.values():
            table.clear()
        self.timers.clear()

    def close(self) -> None:
        self.commit()
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _complete_lines(path: Path) -> Iterator[list[tuple[str, str, JsonDocument | None]]]:
    """The lines of a journal. A last line that a kill cut off is left out, since its request got no response."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
