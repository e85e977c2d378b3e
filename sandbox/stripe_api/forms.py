"""Stripe's bracket forms: ``items[0][price]=p`` and ``metadata[k]=v`` become a tree, and the tree becomes typed values.

Every endpoint lists its parameters; any other is rejected with ``parameter_unknown``, as Stripe does.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from sandbox.http import JsonDocument
from sandbox.stripe_api.errors import invalid_param, missing_param, unsupported_param

FormNode = Any  # str | list[FormNode] | dict[str, FormNode]
FieldParser = Callable[[str, FormNode], Any]
FormSchema = Mapping[str, FieldParser]

MAX_FORM_PAIRS = 2000
MAX_FORM_DEPTH = 8
MAX_STRIPE_METADATA_KEYS, MAX_STRIPE_METADATA_KEY_LENGTH, MAX_STRIPE_METADATA_VALUE_LENGTH = 50, 40, 500
STRIPE_EMAIL_PATTERN = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


def decode(form: str) -> JsonDocument:
    pairs = parse_qsl(form, keep_blank_values=True, max_num_fields=MAX_FORM_PAIRS)
    root: JsonDocument = {}
    for key, value in pairs:
        path = [key.split("[", 1)[0], *re.findall(r"\[([^\]]*)\]", key)]
        if len(path) > MAX_FORM_DEPTH:
            raise invalid_param(path[0], f"The parameter {key[:80]} is nested too deeply.")
        node = root
        for name in path[:-1]:
            inner = node.setdefault(name or str(len(node)), {})
            if not isinstance(inner, dict):
                raise invalid_param(path[0], f"Invalid {path[0]}")
            node = inner
        node[path[-1] or str(len(node))] = value
    return {name: _with_lists(value) for name, value in root.items()}


def _with_lists(node: FormNode) -> FormNode:
    if not isinstance(node, dict):
        return node
    if node and all(name.isdigit() for name in node):
        return [_with_lists(node[name]) for name in sorted(node, key=int)]
    return {name: _with_lists(value) for name, value in node.items()}


def validate(form: JsonDocument, schema: FormSchema, *required: str, outer: str = "") -> JsonDocument:
    """The typed values of the form. ``None`` means '' (unset)."""
    unknown = [name for name in form if name not in schema]
    if unknown:
        names = ", ".join(_param_name(outer, name) for name in unknown)
        plural = "s" if len(unknown) > 1 else ""
        raise invalid_param(
            _param_name(outer, unknown[0]), f"Received unknown parameter{plural}: {names}", "parameter_unknown"
        )
    for name in required:
        if name not in form:
            raise missing_param(_param_name(outer, name))
    return {name: schema[name](_param_name(outer, name), value) for name, value in form.items()}


def _param_name(outer: str, name: str) -> str:
    return f"{outer}[{name}]" if outer else name


@dataclass(frozen=True)
class text:  # noqa: N801  # reads as a word in the schemas
    """At most ``max_length`` characters; '' unsets the field if ``clearable``."""

    max_length: int = 5000
    clearable: bool = True

    def __call__(self, param: str, value: FormNode) -> str | None:
        if not isinstance(value, str):
            raise invalid_param(param, f"Invalid string: {value}")
        if value == "":
            _check_clearable(param, clearable=self.clearable)
            return None
        if len(value) > self.max_length:
            raise invalid_param(param, f"Invalid string: {value[:20]}...; must be at most {self.max_length} characters")
        return value


def email(param: str, value: FormNode) -> str | None:
    address = text(512)(param, value)
    if address is not None and not STRIPE_EMAIL_PATTERN.fullmatch(address):
        raise invalid_param(param, f"Invalid email address: {address}", "email_invalid")
    return address


@dataclass(frozen=True)
class integer:  # noqa: N801
    minimum: int = -(2**63)
    maximum: int = 2**63
    clearable: bool = False

    def __call__(self, param: str, value: FormNode) -> int | None:
        if value == "":
            _check_clearable(param, clearable=self.clearable)
            return None
        if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
            raise invalid_param(param, f"Invalid integer: {value}", "parameter_invalid_integer")
        number = int(value)
        if not self.minimum <= number <= self.maximum:
            side, bound = ("greater", self.minimum) if number < self.minimum else ("less", self.maximum)
            raise invalid_param(
                param, f"This value must be {side} than or equal to {bound}.", "parameter_invalid_integer"
            )
        return number


def decimal_amount(param: str, value: FormNode) -> Decimal:
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,15}(\.\d{1,12})?", value):
        raise invalid_param(param, f"Invalid decimal: {value}")
    return Decimal(value)


def boolean(param: str, value: FormNode) -> bool:
    if value not in ("true", "false"):
        raise invalid_param(param, f"Invalid boolean: {value}")
    return bool(value == "true")


@dataclass(frozen=True)
class choice:  # noqa: N801
    allowed: tuple[str, ...]
    clearable: bool = False

    def __call__(self, param: str, value: FormNode) -> str | None:
        if value == "" and self.clearable:
            return None
        if value not in self.allowed:
            raise invalid_param(param, f"Invalid {param}: must be one of {', '.join(self.allowed)}")
        return str(value)


def metadata(param: str, value: FormNode) -> dict[str, str] | None:
    """'' removes all keys and a key with '' removes that key; other keys are merged (stripe.md 4)."""
    if value == "":
        return None
    if isinstance(value, list):  # {"0": "x"} looks like a list in bracket form
        value = {str(number): each for number, each in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise invalid_param(param, "Invalid hash")
    if len(value) > MAX_STRIPE_METADATA_KEYS:
        raise invalid_param(param, f"You can only specify {MAX_STRIPE_METADATA_KEYS} metadata keys.")
    for key, each in value.items():
        if len(key) > MAX_STRIPE_METADATA_KEY_LENGTH:
            raise invalid_param(
                param, f"Metadata keys must be at most {MAX_STRIPE_METADATA_KEY_LENGTH} characters: {key[:50]}"
            )
        if len(each) > MAX_STRIPE_METADATA_VALUE_LENGTH:
            raise invalid_param(
                f"{param}[{key}]", f"Metadata values must be at most {MAX_STRIPE_METADATA_VALUE_LENGTH} characters."
            )
    return dict(value)


def merge_metadata(old: dict[str, str], sent: dict[str, str] | None) -> dict[str, str]:
    if sent is None:
        return {}
    merged = {key: value for key, value in (old | sent).items() if value != ""}
    if len(merged) > MAX_STRIPE_METADATA_KEYS:
        raise invalid_param("metadata", f"You can only specify {MAX_STRIPE_METADATA_KEYS} metadata keys.")
    return merged


@dataclass(frozen=True)
class record:  # noqa: N801
    """A hash with its own schema; '' unsets it."""

    schema: FormSchema
    required: tuple[str, ...] = ()

    def __call__(self, param: str, value: FormNode) -> JsonDocument | None:
        if value == "":
            return None
        if not isinstance(value, dict):
            raise invalid_param(param, "Invalid hash")
        return validate(value, self.schema, *self.required, outer=param)


@dataclass(frozen=True)
class array:  # noqa: N801
    item: FieldParser
    max_items: int = 100

    def __call__(self, param: str, value: FormNode) -> list[Any]:
        if value == "":
            return []
        if not isinstance(value, list):
            raise invalid_param(param, "Invalid array")
        if len(value) > self.max_items:
            raise invalid_param(param, f"Array {param} may have at most {self.max_items} entries.")
        return [self.item(f"{param}[{number}]", node) for number, node in enumerate(value)]


def unsupported(param: str, _value: FormNode) -> None:
    """Stripe accepts this parameter, but the sandbox does not implement it."""
    raise unsupported_param(param)


def time_range(param: str, value: FormNode) -> JsonDocument:
    """``created=1`` or ``created[gte]=1``."""
    if isinstance(value, dict):
        return validate(value, dict.fromkeys(("gt", "gte", "lt", "lte"), integer()), outer=param)
    return {"gte": integer()(param, value), "lte": integer()(param, value)}


def _check_clearable(param: str, *, clearable: bool) -> None:
    if not clearable:
        raise invalid_param(
            param,
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{param}' cannot be unset. You should remove '{param}' from your request or supply a non-empty "
            "value.",
            "parameter_invalid_empty",
        )


ADDRESS_FIELDS = record({name: text() for name in ("city", "country", "line1", "line2", "postal_code", "state")})
EXPAND_FIELDS = {"expand": array(text(500, clearable=False), 20)}
PAGINATION_FIELDS: FormSchema = {
    "limit": integer(1, 100),
    "starting_after": text(clearable=False),
    "ending_before": text(clearable=False),
    **EXPAND_FIELDS,
}
