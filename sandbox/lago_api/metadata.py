"""Lago's customer metadata (lago.md 3.3): the list sent replaces the whole set.

Only ids tell old entries from new.
"""

from sandbox.http import Doc
from sandbox.lago_api.errors import invalid
from sandbox.lago_api.serializers import new_id

MOST, LONGEST_KEY, LONGEST_VALUE = 5, 20, 100


def replaced(old: list[Doc], sent: object, now: float) -> list[Doc]:
    """The entries after the request. Raises 422, and nothing is saved.

    Entries are written one by one and what is left over goes last, so the same key without its id meets its old self:
    ``value_already_exist``.
    """
    if not isinstance(sent, list):
        return old  # an object is not in the controller's permit list: dropped silently
    wanted = [entry for entry in sent if isinstance(entry, dict)]
    if len(wanted) > MOST:
        raise invalid({"metadata": ["invalid_count"]})
    entries = {str(entry["lago_id"]): entry for entry in old}
    kept: list[str] = []
    for entry in wanted:
        known = entries.get(str(entry.get("id")))
        written = _written(entry, known, now)
        others = (each for key, each in entries.items() if key != written["lago_id"])
        if any(each["key"] == written["key"] for each in others):
            raise invalid({"key": ["value_already_exist"]})
        entries[written["lago_id"]] = written
        kept.append(written["lago_id"])
    return [entries[key] for key in kept]


def _written(entry: Doc, known: Doc | None, now: float) -> Doc:
    base: Doc = known or {
        "lago_id": new_id(),
        "key": None,
        "value": None,
        "display_in_invoice": False,
        "created_at": now,
    }
    changes: Doc = {name: entry[name] for name in ("key", "value", "display_in_invoice") if name in entry}
    written = base | changes
    errors: dict[str, list[str]] = {}
    for name, longest in (("key", LONGEST_KEY), ("value", LONGEST_VALUE)):
        value = str(written[name]) if written[name] is not None else ""
        if not value:
            errors[name] = ["value_is_mandatory"]
        elif len(value) > longest:
            errors[name] = ["value_is_too_long"]
        written[name] = value
    if errors:
        raise invalid(errors)
    return written
