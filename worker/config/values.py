"""A value as its operator meant it, without what a file, a shell or a secret store adds at its ends.

A line break or a byte order mark at an end is dropped. A space is dropped only where the value is no secret, because a
password may begin or end with one. Quotes are refused: nobody can see whether they belong to the value.
"""

from __future__ import annotations

import re
from typing import Final, get_args

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from core.common import given_text

_QUOTES: Final = ("'", '"', "`", "“", "”")


class CleanedSettings(BaseSettings):
    """The base of all settings. It is applied to each value before its own checks."""

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        clean = given_text.without_line_ends if _is_secret(cls, info.field_name) else given_text.trimmed
        cleaned = clean(value)
        problem = ""
        if re.search(r"[\ud800-\udfff]", cleaned):  # how Python shows a byte that is not UTF-8
            problem = "is not UTF-8 text"
        elif value and not cleaned.strip():
            problem = "is blank: give it a value, or remove it"
        elif cleaned.startswith(_QUOTES) and cleaned.endswith(_QUOTES):
            problem = "is in quotes, which would be a part of it: remove them (`docker run --env-file` keeps them)"
        if problem:
            raise ValueError(problem)
        return cleaned


def _is_secret(model: type[BaseSettings], name: str | None) -> bool:
    field = model.model_fields.get(name or "")
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))
