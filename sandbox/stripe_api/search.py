"""Stripe's search language, as far as customers need it: ``metadata['org_id']:'42' AND email:'a@b.test'``."""

import re
from dataclasses import dataclass

from sandbox.http import Doc
from sandbox.stripe_api.errors import invalid

CLAUSE = re.compile(
    r"""\s*(?P<minus>-?)(?P<field>name|email|phone|created|metadata\[(['"])(?P<key>[^'"\]]+)\3\])"""
    r"""\s*(?P<operator>:|~|>=|<=|>|<)\s*(?:(?P<null>null)|(?P<number>\d+)|(['"])(?P<value>(?:\\.|(?!\8).)*)\8)\s*"""
)
JOIN = re.compile(r"(AND|OR)\b", re.IGNORECASE)
MOST_CLAUSES = 10


@dataclass(frozen=True, slots=True)
class Clause:
    field: str
    key: str | None
    operator: str
    value: str | None
    negated: bool
    alternative: bool  # joined with OR


def parse_query(query: str) -> list[Clause]:
    clauses: list[Clause] = []
    position, alternative = 0, False
    while True:
        found = CLAUSE.match(query, position)
        if found is None or len(clauses) == MOST_CLAUSES:
            raise invalid("query", f"We were unable to parse your search query: {query}")
        value = found["number"] or (re.sub(r"\\(.)", r"\1", found["value"]) if found["value"] is not None else None)
        name = "metadata" if found["key"] else found["field"]
        clauses.append(Clause(name, found["key"], found["operator"], value, bool(found["minus"]), alternative))
        position = found.end()
        if position == len(query):
            return clauses
        joined = JOIN.match(query, position)
        if joined is None:
            raise invalid("query", f"We were unable to parse your search query: {query}")
        alternative = joined[1].upper() == "OR"
        position = joined.end()


def matches(row: Doc, clauses: list[Clause]) -> bool:
    verdicts = [_holds(row, clause) for clause in clauses]
    return any(verdicts) if any(clause.alternative for clause in clauses) else all(verdicts)


def _holds(row: Doc, clause: Clause) -> bool:
    actual = row["metadata"].get(clause.key) if clause.field == "metadata" else row[clause.field]
    if clause.value is None:
        return (actual is None) != clause.negated
    if clause.field == "created":
        return _compares(int(actual), clause.operator, int(clause.value)) != clause.negated
    if clause.operator == "~":
        return (clause.value.lower() in str(actual or "").lower()) != clause.negated
    return (str(actual).lower() == clause.value.lower() if actual is not None else False) != clause.negated


def _compares(actual: int, operator: str, wanted: int) -> bool:
    return {
        ":": actual == wanted,
        ">": actual > wanted,
        ">=": actual >= wanted,
        "<": actual < wanted,
        "<=": actual <= wanted,
    }.get(operator, False)
