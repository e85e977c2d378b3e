"""Stripe's bracket forms: ``items[0][price]=p`` and ``metadata[k]=v`` become a tree, and a tree becomes typed values.

Every endpoint lists what it takes; what it does not list is refused with ``parameter_unknown``, as Stripe does.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from sandbox.http import Doc
from sandbox.stripe_api.errors import invalid, missing_param, unsupported

Node = Any  # str | list[Node] | dict[str, Node]: what a form can say
Check = Callable[[str, Node], Any]
Schema = Mapping[str, Check]

MOST_PAIRS = 2000
MOST_DEPTH = 8
METADATA_KEYS, METADATA_KEY, METADATA_VALUE = 50, 40, 500
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


def tree(form: str) -> Doc:
    pairs = parse_qsl(form, keep_blank_values=True, max_num_fields=MOST_PAIRS)
    root: Doc = {}
    for key, value in pairs:
        path = [key.split("[", 1)[0], *re.findall(r"\[([^\]]*)\]", key)]
        if len(path) > MOST_DEPTH:
            raise invalid(path[0], f"The parameter {key[:80]} is nested too deeply.")
        node = root
        for name in path[:-1]:
            inner = node.setdefault(name or str(len(node)), {})
            if not isinstance(inner, dict):
                raise invalid(path[0], f"Invalid {path[0]}")
            node = inner
        node[path[-1] or str(len(node))] = value
    return {name: _listed(value) for name, value in root.items()}


def _listed(node: Node) -> Node:
    if not isinstance(node, dict):
        return node
    if node and all(name.isdigit() for name in node):
        return [_listed(node[name]) for name in sorted(node, key=int)]
    return {name: _listed(value) for name, value in node.items()}


def read(form: Doc, schema: Schema, *required: str, at: str = "") -> Doc:
    """The typed values of what was sent. ``None`` stands for '' (unset)."""
    unknown = [name for name in form if name not in schema]
    if unknown:
        names = ", ".join(_at(at, name) for name in unknown)
        plural = "s" if len(unknown) > 1 else ""
        raise invalid(_at(at, unknown[0]), f"Received unknown parameter{plural}: {names}", "parameter_unknown")
    for name in required:
        if name not in form:
            raise missing_param(_at(at, name))
    return {name: schema[name](_at(at, name), value) for name, value in form.items()}


def _at(outer: str, name: str) -> str:
    return f"{outer}[{name}]" if outer else name


@dataclass(frozen=True)
class text:  # noqa: N801  # reads as a word in the schemas
    """At most ``most`` characters; '' unsets where ``clears``."""

    most: int = 5000
    clears: bool = True

    def __call__(self, param: str, value: Node) -> str | None:
        if not isinstance(value, str):
            raise invalid(param, f"Invalid string: {value}")
        if value == "":
            _check_unset(param, clears=self.clears)
            return None
        if len(value) > self.most:
            raise invalid(param, f"Invalid string: {value[:20]}...; must be at most {self.most} characters")
        return value


def email(param: str, value: Node) -> str | None:
    address = text(512)(param, value)
    if address is not None and not EMAIL.fullmatch(address):
        raise invalid(param, f"Invalid email address: {address}", "email_invalid")
    return address


@dataclass(frozen=True)
class integer:  # noqa: N801
    least: int = -(2**63)
    most: int = 2**63
    clears: bool = False

    def __call__(self, param: str, value: Node) -> int | None:
        if value == "":
            _check_unset(param, clears=self.clears)
            return None
        if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
            raise invalid(param, f"Invalid integer: {value}", "parameter_invalid_integer")
        number = int(value)
        if not self.least <= number <= self.most:
            side, bound = ("greater", self.least) if number < self.least else ("less", self.most)
            raise invalid(param, f"This value must be {side} than or equal to {bound}.", "parameter_invalid_integer")
        return number


def amount(param: str, value: Node) -> Decimal:
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,15}(\.\d{1,12})?", value):
        raise invalid(param, f"Invalid decimal: {value}")
    return Decimal(value)


def boolean(param: str, value: Node) -> bool:
    if value not in ("true", "false"):
        raise invalid(param, f"Invalid boolean: {value}")
    return bool(value == "true")


@dataclass(frozen=True)
class choice:  # noqa: N801
    allowed: tuple[str, ...]
    clears: bool = False

    def __call__(self, param: str, value: Node) -> str | None:
        if value == "" and self.clears:
            return None
        if value not in self.allowed:
            raise invalid(param, f"Invalid {param}: must be one of {', '.join(self.allowed)}")
        return str(value)


def metadata(param: str, value: Node) -> dict[str, str] | None:
    """'' drops all keys, a key with '' that one; the rest is merged (stripe.md 4)."""
    if value == "":
        return None
    if isinstance(value, list):  # {"0": "x"} looks like a list in bracket form
        value = {str(number): each for number, each in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise invalid(param, "Invalid hash")
    if len(value) > METADATA_KEYS:
        raise invalid(param, f"You can only specify {METADATA_KEYS} metadata keys.")
    for key, each in value.items():
        if len(key) > METADATA_KEY:
            raise invalid(param, f"Metadata keys must be at most {METADATA_KEY} characters: {key[:50]}")
        if len(each) > METADATA_VALUE:
            raise invalid(f"{param}[{key}]", f"Metadata values must be at most {METADATA_VALUE} characters.")
    return dict(value)


def merged_metadata(old: dict[str, str], sent: dict[str, str] | None) -> dict[str, str]:
    if sent is None:
        return {}
    merged = {key: value for key, value in (old | sent).items() if value != ""}
    if len(merged) > METADATA_KEYS:
        raise invalid("metadata", f"You can only specify {METADATA_KEYS} metadata keys.")
    return merged


@dataclass(frozen=True)
class record:  # noqa: N801
    """A hash with its own schema; '' unsets."""

    schema: Schema
    required: tuple[str, ...] = ()

    def __call__(self, param: str, value: Node) -> Doc | None:
        if value == "":
            return None
        if not isinstance(value, dict):
            raise invalid(param, "Invalid hash")
        return read(value, self.schema, *self.required, at=param)


@dataclass(frozen=True)
class array:  # noqa: N801
    each: Check
    most: int = 100

    def __call__(self, param: str, value: Node) -> list[Any]:
        if value == "":
            return []
        if not isinstance(value, list):
            raise invalid(param, "Invalid array")
        if len(value) > self.most:
            raise invalid(param, f"Array {param} may hold at most {self.most} entries.")
        return [self.each(f"{param}[{number}]", node) for number, node in enumerate(value)]


def refused(param: str, _value: Node) -> None:
    """Stripe takes it, the stand-in does not implement it."""
    raise unsupported(param)


def window(param: str, value: Node) -> Doc:
    """``created=1`` or ``created[gte]=1``."""
    if isinstance(value, dict):
        return read(value, dict.fromkeys(("gt", "gte", "lt", "lte"), integer()), at=param)
    return {"gte": integer()(param, value), "lte": integer()(param, value)}


def _check_unset(param: str, *, clears: bool) -> None:
    if not clears:
        raise invalid(
            param,
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{param}' cannot be unset. You should remove '{param}' from your request or supply a non-empty "
            "value.",
            "parameter_invalid_empty",
        )


ADDRESS = record({name: text() for name in ("city", "country", "line1", "line2", "postal_code", "state")})
EXPAND = {"expand": array(text(500, clears=False), 20)}
PAGE: Schema = {
    "limit": integer(1, 100),
    "starting_after": text(clears=False),
    "ending_before": text(clears=False),
    **EXPAND,
}
