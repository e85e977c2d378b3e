"""Where the sandbox keeps its objects: in memory, and in an append-only file when it was given one.

``commit`` writes what one request changed as one line, so after a kill -9 a request is there whole or not at all, and
its cost does not grow with the state. The file is compacted when it is opened.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from sandbox.clock import Agenda
from sandbox.http import Doc

Index = Callable[[Doc], str | None]
Due = Callable[[Doc], float | None]
Tick = Callable[[Doc, float], None]


class Table:
    """Documents under a key, in order of arrival, with the look-ups the lists need.

    A document may be changed in place; it counts once it is ``put`` again.
    """

    def __init__(self, name: str, store: "Store", indexes: Mapping[str, Index]) -> None:
        self.name = name
        self._store = store
        self._rows: dict[str, Doc] = {}
        self._indexes = dict(indexes)
        self._found: dict[str, dict[str, dict[str, None]]] = {name: {} for name in indexes}
        self._indexed: dict[str, tuple[tuple[str, str], ...]] = {}
        self._due: Due | None = None
        self._tick: Tick | None = None

    def schedule(self, due: Due, tick: Tick) -> None:
        """``tick`` is called with a document when the time ``due`` names for it comes; it must move that time on."""
        self._due, self._tick = due, tick

    def get(self, key: str) -> Doc | None:
        return self._rows.get(key)

    def put(self, key: str, row: Doc) -> None:
        self.load(key, row)
        self._store.note(self.name, key, row)

    def drop(self, key: str) -> None:
        self.load(key, None)
        self._store.note(self.name, key, None)

    def load(self, key: str, row: Doc | None) -> None:
        for index, value in self._indexed.pop(key, ()):
            found = self._found[index][value]
            del found[key]
            if not found:
                del self._found[index][value]
        if row is None:
            self._rows.pop(key, None)
            return
        self._rows[key] = row
        entries = tuple((index, entry) for index, of in self._indexes.items() if (entry := of(row)) is not None)
        for index, entry in entries:
            self._found[index].setdefault(entry, {})[key] = None
        if entries:
            self._indexed[key] = entries
        self._plan(key, row)

    def by(self, index: str, value: str) -> list[Doc]:
        """Oldest change first."""
        return [self._rows[key] for key in self._found[index].get(value, ())]

    def __iter__(self) -> Iterator[Doc]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def items(self) -> Iterator[tuple[str, Doc]]:
        return iter(self._rows.items())

    def oldest(self) -> tuple[str, Doc] | None:
        return next(iter(self._rows.items()), None)

    def clear(self) -> None:
        for key in list(self._rows):
            self.drop(key)

    def _plan(self, key: str, row: Doc) -> None:
        if self._due is None or (when := self._due(row)) is None:
            return
        self._store.agenda.add(when, lambda at: self._wake(key, at))

    def _wake(self, key: str, at: float) -> None:
        row = self._rows.get(key)
        # The object may have moved on since the entry was made; then a younger entry stands for it.
        if row is not None and self._due is not None and self._tick is not None and self._due(row) == at:
            self._tick(row, at)


class Store:
    def __init__(self, agenda: Agenda, path: Path | None = None) -> None:
        self.agenda = agenda
        self._tables: dict[str, Table] = {}
        self._changes: dict[tuple[str, str], Doc | None] = {}
        self._path = path
        self._journal: TextIO | None = None

    def table(self, name: str, **indexes: Index) -> Table:
        self._tables[name] = Table(name, self, indexes)
        return self._tables[name]

    def note(self, table: str, key: str, row: Doc | None) -> None:
        if self._path is not None:
            self._changes[table, key] = row

    def open(self) -> None:
        """Read what an earlier run left, and compact it. Call once all tables are made."""
        if self._path is None:
            return
        for line in _whole_lines(self._path):
            for name, key, row in line:
                self._tables[name].load(key, row)
        fresh = self._path.with_name(self._path.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            for name, table in self._tables.items():
                for key, row in table.items():
                    file.write(json.dumps([[name, key, row]]) + "\n")
        fresh.replace(self._path)
        self._journal = self._path.open("a", encoding="utf-8")

    def commit(self) -> None:
        if self._journal is None or not self._changes:
            return
        changed = [[table, key, row] for (table, key), row in self._changes.items()]
        self._changes.clear()
        self._journal.write(json.dumps(changed) + "\n")
        self._journal.flush()  # into the kernel: enough for kill -9, and no disk wait per request

    def clear(self) -> None:
        for table in self._tables.values():
            table.clear()
        self.agenda.clear()

    def close(self) -> None:
        self.commit()
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _whole_lines(path: Path) -> Iterator[list[tuple[str, str, Doc | None]]]:
    """The lines of a journal; a last one torn by a kill is left out, for its request was never answered."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
