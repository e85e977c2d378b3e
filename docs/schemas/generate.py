"""Writes the JSON Schemas beside this file from the models that validate the messages, so that the two always agree.

Run it from the project's folder after changing ``core/inbox/event_schemas.py``: ``python -m docs.schemas.generate``.
"""
# ruff: noqa: INP001 - a folder of documents with one program, not a package

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from core.events.event_types import CHANGE_TYPES
from core.inbox.event_schemas import DATA_MODELS, ServiceEventMessage

FOLDER = Path(__file__).resolve().parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, str]:
    """The contents of each file by its name: the envelope, and the ``data`` of every event type."""
    data_schemas = {f"{event_type}.json": _document(model) for event_type, model in DATA_MODELS.items()}
    schema = ServiceEventMessage.model_json_schema()
    schema["properties"]["type"]["enum"] = list(CHANGE_TYPES)
    return {"envelope.json": _text(schema), **data_schemas}


def _document(model: type[BaseModel]) -> str:
    return _text(model.model_json_schema())


def _text(schema: dict[str, object]) -> str:
    return json.dumps({"$schema": DIALECT, **schema}, indent=2) + "\n"


if __name__ == "__main__":
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
