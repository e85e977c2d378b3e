"""The providers' OpenAPI documents: their location, and one parsed copy of each per process.

They are read, never copied: Lago's is AGPL, and copies in the repository would become outdated.
"""

import functools
import json
from pathlib import Path
from typing import TypeAlias

import yaml

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Object: TypeAlias = dict[str, Json]

_ROOT = Path(__file__).parents[2]
_BESIDE = "../shared/specs"
_STRIPE = "stripe-openapi-2026-08-26.json"
_LAGO = "lago-openapi.yaml"

# The C parser reads Lago's 877 kB in 0.2 s, the Python one in about 3 s.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class MisshapenError(TypeError):
    """A document is not valid OpenAPI."""

    def __init__(self, value: object, expected: str) -> None:
        super().__init__(f"the document contains {value!r:.80} where OpenAPI requires: {expected}")


def available() -> bool:
    """Whether both documents are next to this checkout."""
    return not _missing()


def where() -> str:
    """One sentence for a run's report: which documents are used, or which are missing."""
    if missing := _missing():
        return (
            f"Requests and answers are not checked against the providers' documents: {' and '.join(missing)} not found"
            f" in {_BESIDE} (relative to the repository's root). Put them there to check."
        )
    stripe, lago = (obj(document["info"])["version"] for document in (stripe_document(), lago_document()))
    return f"Requests and answers are checked against the documents of Stripe {stripe} and Lago {lago} in {_BESIDE}."


@functools.cache
def stripe_document() -> Object:
    """Stripe's billing API: its requests and its responses. Shared by all callers: copy before changing."""
    return obj(json.loads(_read(_STRIPE)))


@functools.cache
def lago_document() -> Object:
    """Lago's whole document. Shared by all callers: copy before changing."""
    return obj(yaml.load(_read(_LAGO), Loader=_Loader))  # noqa: S506 - a SafeLoader either way


def obj(value: Json) -> Object:
    """The value, which must be an object in OpenAPI."""
    if not isinstance(value, dict):
        raise MisshapenError(value, "object")
    return value


def array(value: Json) -> list[Json]:
    """The value, which must be a list in OpenAPI."""
    if not isinstance(value, list):
        raise MisshapenError(value, "list")
    return value


def _read(name: str) -> bytes:
    if not available():
        raise FileNotFoundError(where())
    return (_folder() / name).read_bytes()


def _missing() -> list[str]:
    return [name for name in (_STRIPE, _LAGO) if not (_folder() / name).is_file()]


def _folder() -> Path:
    return _ROOT / _BESIDE
