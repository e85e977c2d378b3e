"""Values that a JSON Schema of the API's document allows, drawn from a seeded generator.

Only what our document uses is understood. A text with a pattern is one of the examples, or one that tries it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.common.json_types import Json
from tests.generated.values import moment, odd_text

DEEPEST: Final = 6
WORDS: Final = ("Acme", "Ümlaut & Co", "a", "user_1", "auth0/1 x", "starter", "professional", "USD", "ann@acme.test")


@dataclass(frozen=True, slots=True)
class SchemaValues:
    """``ids``: existing ones by the name of the field or the parameter that takes them."""

    document: Mapping[str, Any]
    ids: Mapping[str, Sequence[str]]

    def value(self, chance: random.Random, schema: Mapping[str, Any], name: str = "", depth: int = 0) -> Json:
        schema = self._resolved(schema)
        ids = self.ids.get(name)
        if ids and chance.random() < 0.85:
            return chance.choice(ids)
        if (example := self._example(chance, schema)) is not None:
            return example
        choices: list[Any] = schema.get("anyOf") or schema.get("oneOf") or []
        if choices and depth <= DEEPEST:
            return self.value(chance, chance.choice(choices), name, depth + 1)
        values: list[Json] = [schema["const"]] if "const" in schema else schema.get("enum", [])
        return chance.choice(values) if values else self._of_type(chance, schema, depth)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        for _ in range(DEEPEST):
            if "$ref" not in schema:
                break
            place: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                place = place[part]
            schema = place
        return schema

    def _example(self, chance: random.Random, schema: Mapping[str, Any]) -> Json:
        examples: list[Json] = schema.get("examples") or []
        return chance.choice(examples) if examples and chance.random() < 0.5 else None

    def _of_type(self, chance: random.Random, schema: Mapping[str, Any], depth: int) -> Json:
        match schema.get("type") if depth <= DEEPEST else "null":
            case "object":
                properties: dict[str, Any] = schema.get("properties", {})
                required = schema.get("required", [])
                return {
                    each: self.value(chance, sub, each, depth + 1)
                    for each, sub in properties.items()
                    if each in required or chance.random() < 0.5
                }
            case "array":
                return [self.value(chance, schema.get("items", {}), "", depth + 1) for _ in range(chance.randrange(3))]
            case "integer" | "number":
                low, high = schema.get("minimum", -3), schema.get("maximum", 2**63 - 1)
                numbers: tuple[int, ...] = (low, high, low + 1, min(high, 10))
                return chance.choice(numbers)
            case "boolean":
                return chance.random() < 0.5
            case "null":
                return None
        return self._text(chance, schema)

    def _text(self, chance: random.Random, schema: Mapping[str, Any]) -> str:
        if schema.get("format") == "date-time":
            return moment(chance)
        if chance.random() < 0.2:
            return odd_text(chance)
        text = chance.choice(WORDS)
        longest = int(schema.get("maxLength", 60))
        return (text * longest)[:longest] if chance.random() < 0.1 else text
