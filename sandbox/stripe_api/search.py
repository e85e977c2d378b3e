"""Stripe's search language, as far as customers use it: ``metadata['org_id']:'42' AND email:'a@b.test'``."""

import re
from dataclasses import dataclass

from sandbox.http import JsonDocument
from sandbox.stripe_api.errors import invalid_param

SEARCH_CLAUSE_PATTERN = re.compile(
    r"""\s*(?P<minus>-?)(?P<field>name|email|phone|created|metadata\[(['"])(?P<key>[^'"\]]+)\3\])"""
    r"""\s*(?P<operator>:|~|>=|<=|>|<)\s*(?:(?P<null>null)|(?P<number>\d+)|(['"])(?P<value>(?:\\.|(?!\8).)*)\8)\s*"""
)
SEARCH_JOIN_PATTERN = re.compile(r"(AND|OR)\b", re.IGNORECASE)
MAX_SEARCH_CLAUSES = 10


@dataclass(frozen=True, slots=True)
class SearchClause:
    field: str
    key: str | None
    operator: str
    value: str | None
    negated: bool
    alternative: bool  # joined with OR


def parse_query(query: str) -> list[SearchClause]:
    clauses: list[SearchClause] = []
    position, alternative = 0, False
    while True:
        found = SEARCH_CLAUSE_PATTERN.match(query, position)
        if found is None or len(clauses) == MAX_SEARCH_CLAUSES:
            raise invalid_param("query", f"We were unable to parse your search query: {query}")
        value = found["number"] or (re.sub(r"\\(.)", r"\1", found["value"]) if found["value"] is not None else None)
        name = "metadata" if found["key"] else found["field"]
        clauses.append(SearchClause(name, found["key"], found["operator"], value, bool(found["minus"]), alternative))
        position = found.end()
        if position == len(query):
            return clauses
        joined = SEARCH_JOIN_PATTERN.match(query, position)
        if joined is None:
            raise invalid_param("query", f"We were unable to parse your search query: {query}")
        alternative = joined[1].upper() == "OR"
        position = joined.end()


def matches(row: JsonDocument, clauses: list[SearchClause]) -> bool:
    results = [_matches_clause(row, clause) for clause in clauses]
    return any(results) if any(clause.alternative for clause in clauses) else all(results)


def _matches_clause(row: JsonDocument, clause: SearchClause) -> bool:
    actual = row["metadata"].get(clause.key) if clause.field == "metadata" else row[clause.field]
    if clause.value is None:
        return (actual is None) != clause.negated
    if clause.field == "created":
        return _compares(int(actual), clause.operator, int(clause.value)) != clause.negated
    if clause.operator == "~":
        return (clause.value.lower() in str(actual or "").lower()) != clause.negated
    return (str(actual).lower() == clause.value.lower() if actual is not None else False) != clause.negated


def _compares(actual: int, operator: str, expected: int) -> bool:
    return {
        ":": actual == expected,
        ">": actual > expected,
        ">=": actual >= expected,
        "<": actual < expected,
        "<=": actual <= expected,
    }.get(operator, False)
