"""A page of metrics as a test reads it: the value of each series, by its name and labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values(text: str) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def values_of(registry: CollectorRegistry) -> Values:
    return values(generate_latest(registry).decode())


def value(found: Values, name: str, **labels: str) -> float | None:
    return found.get((f"billing_sync_{name}", frozenset(labels.items())))
