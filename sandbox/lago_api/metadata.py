"""Lago's customer metadata (lago.md 3.3): the sent list replaces all entries.

An entry is only recognized by its id.
"""

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import validation_error
from sandbox.lago_api.serializers import new_id

MAX_METADATA_ENTRIES, MAX_METADATA_KEY_LENGTH, MAX_METADATA_VALUE_LENGTH = 5, 20, 100


def replace_metadata(old: list[JsonDocument], sent: object, now: float) -> list[JsonDocument]:
    """The entries after the request. Raises 422 if one is invalid, and nothing is saved.

    Entries are written one by one, and those not sent are removed last. So an existing key that is sent without its id
    is a duplicate: ``value_already_exist``.
    """
    if not isinstance(sent, list):
        return old  # an object is not in the controller's permit list, so Lago drops it silently
    sent_entries = [entry for entry in sent if isinstance(entry, dict)]
    if len(sent_entries) > MAX_METADATA_ENTRIES:
        raise validation_error({"metadata": ["invalid_count"]})
    entries = {str(entry["lago_id"]): entry for entry in old}
    order: list[str] = []
    for entry in sent_entries:
        existing = entries.get(str(entry.get("id")))
        written = _written_entry(entry, existing, now)
        others = (each for key, each in entries.items() if key != written["lago_id"])
        if any(each["key"] == written["key"] for each in others):
            raise validation_error({"key": ["value_already_exist"]})
        entries[written["lago_id"]] = written
        order.append(written["lago_id"])
    return [entries[key] for key in order]


def _written_entry(entry: JsonDocument, existing: JsonDocument | None, now: float) -> JsonDocument:
    base: JsonDocument = existing or {
        "lago_id": new_id(),
        "key": None,
        "value": None,
        "display_in_invoice": False,
        "created_at": now,
    }
    changes: JsonDocument = {name: entry[name] for name in ("key", "value", "display_in_invoice") if name in entry}
    written = base | changes
    errors: dict[str, list[str]] = {}
    for name, max_length in (("key", MAX_METADATA_KEY_LENGTH), ("value", MAX_METADATA_VALUE_LENGTH)):
        value = str(written[name]) if written[name] is not None else ""
        if not value:
            errors[name] = ["value_is_mandatory"]
        elif len(value) > max_length:
            errors[name] = ["value_is_too_long"]
        written[name] = value
    if errors:
        raise validation_error(errors)
    return written
