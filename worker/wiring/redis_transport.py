"""kombu's transport for Redis, except that it drops what lies in a list and is no message.

kombu reads such a thing outside of everything that expects errors, so it ends the worker. It was already taken from
the list, so each one ends one worker (kombu/transport/redis.py ``_brpop_read``, read in 5.7.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.json import loads
from redis import Redis

log = structlog.get_logger()

# What an envelope of any other form makes kombu raise. ``ValueError`` includes errors of JSON, UTF-8 and base64, and
# ``ArithmeticError`` those of numbers.
_FORM_ERRORS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def register() -> None:
    """From now on URLs with these schemes use it. Call it before the first connection of the process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


class _ListClient(Redis):
    """``BRPOP`` answers as if the list were empty, if what it took is no message."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:  # noqa: ANN401 - as in redis-py
        parse: Callable[..., Any] = super().parse_response
        reply = parse(connection, command_name, **options)
        if command_name == "BRPOP" and reply and (problem := _form_problem(reply[1])) is not None:
            log.error("message_dropped", reason="no_message", error=problem)
            return None
        return reply


class Channel(kombu_redis.Channel):
    def _get_client(self) -> type[Redis]:
        return _ListClient


class Transport(kombu_redis.Transport):
    Channel = Channel


def _form_problem(item: bytes) -> str | None:
    """The class of the error that kombu would raise before a worker has the message; ``None`` if it can read it."""
    try:
        _check_envelope(loads(item))
    except _FORM_ERRORS as error:
        return type(error).__name__
    return None


def _check_envelope(envelope: Mapping[str, Any]) -> None:
    """Raises one of ``_FORM_ERRORS``. These parts are used by kombu itself, the others by Celery."""
    properties = envelope["properties"]
    delivery = properties["delivery_info"]
    tag, exchange, routing_key = properties["delivery_tag"], delivery["exchange"], delivery["routing_key"]
    names = isinstance(tag, str | int) and isinstance(exchange, str | None) and isinstance(routing_key, str)
    if not (names and isinstance(envelope.get("headers") or {}, dict)):
        message = "a name or the headers are of a wrong type"
        raise TypeError(message)
    body, encoding = envelope.get("body"), properties.get("body_encoding")
    if body and encoding and encoding.lower() != "utf-8":
        kombu_redis.Channel.codecs[encoding].decode(body)
