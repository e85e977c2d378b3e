"""The tables of docs/how-to/permissions.md: who may call which route, as the page tells it.

A row has the route, a cell for each column, and the statuses of an organization in which it is answered 409.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from core.access.api_keys import SCOPES, Scope

PAGE_NAME = "docs/how-to/permissions.md"
PAGE = Path(__file__).resolve().parents[2] / PAGE_NAME

Column = Literal["nobody", "stranger", "member", "billing admin", "owner", "service"]
Mark = Literal["yes", "own", "some", "signed", "browser"]
RouteKey = tuple[str, str]
COLUMNS: tuple[Column, ...] = get_args(Column)
HEADER = ("route", *COLUMNS, "409 if", "what it does")

_ROUTE = re.compile(r"([A-Z]+) `(/\S+)`")
_SERVICE = re.compile(r"`([a-z]+:[a-z]+)`(?:, (own/\d{3}))?")
_MARK = re.compile(r"(own|some|signed|browser)/(\d{3})")
_CONFLICTS = {"": frozenset[str](), "deleted": frozenset({"deleted"})}
_CONFLICTS["suspended or deleted"] = frozenset({"suspended", "deleted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCell:
    """``mark`` None: refused. ``status``: the answer to what is refused; None: nothing is. ``scope``: of a key."""

    mark: Mark | None
    status: int | None = None
    scope: Scope | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """``conflicts``: the statuses of an organization in which it is answered 409."""

    cells: dict[Column, PageCell]
    conflicts: frozenset[str]

    @property
    def is_public(self) -> bool:
        return self.cells["nobody"].mark is not None


def read() -> dict[RouteKey, PageRow]:
    return parse(PAGE.read_text(encoding="utf-8"))


def parse(text: str) -> dict[RouteKey, PageRow]:
    """Raises ``ValueError`` with a sentence for a row that cannot be read or repeats a route."""
    rows: dict[RouteKey, PageRow] = {}
    is_table = False
    for line in text.splitlines():
        values = tuple(value.strip() for value in line.strip().strip("|").split("|")) if line.startswith("|") else ()
        if not values or values == HEADER:
            is_table = bool(values)
        elif is_table and not set(line) <= set("|- "):
            route, row = _row(values)
            if route in rows:
                message = f"{PAGE_NAME} has two rows of {' '.join(route)}: remove one"
                raise ValueError(message)
            rows[route] = row
    return rows


def differences(routes: set[RouteKey], rows: set[RouteKey]) -> list[str]:
    """A sentence for each route without a row, and for each row without a route."""
    return [
        f"{method} {path} has no row on {PAGE_NAME}: decide who may call it, and write a row into one of the tables"
        for method, path in sorted(routes - rows)
    ] + [
        f"{PAGE_NAME} has a row of {method} {path}, which /openapi.json does not name: remove the row, or add the route"
        for method, path in sorted(rows - routes)
    ]


def _row(values: tuple[str, ...]) -> tuple[RouteKey, PageRow]:
    route = _ROUTE.fullmatch(values[0])
    if route is None or len(values) != len(HEADER) or values[-2] not in _CONFLICTS:
        message = f"{PAGE_NAME} has a row that does not have the form of its header: {' | '.join(values)}"
        raise ValueError(message)
    cells = {column: _cell(column, value, values[0]) for column, value in zip(COLUMNS, values[1:-2], strict=True)}
    return (route[1], route[2]), PageRow(cells=cells, conflicts=_CONFLICTS[values[-2]])


def _cell(column: Column, text: str, route: str) -> PageCell:
    if text == "yes":
        return PageCell(mark="yes")
    if text in {"401", "403", "404"}:
        return PageCell(mark=None, status=int(text))
    if (service := _SERVICE.fullmatch(text)) is not None and column == "service" and service[1] in SCOPES:
        cell = _cell(column, service[2] or "yes", route)
        return PageCell(mark=cell.mark, status=cell.status, scope=next(each for each in SCOPES if each == service[1]))
    if (mark := _MARK.fullmatch(text)) is not None:
        return PageCell(mark=next(each for each in get_args(Mark) if each == mark[1]), status=int(mark[2]))
    message = f"{PAGE_NAME} has a mark that it does not explain, {text!r} in the column {column} of {route}"
    raise ValueError(message)
