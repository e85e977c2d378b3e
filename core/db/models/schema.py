"""What the schema says about itself to an older version of this program."""

from __future__ import annotations

from sqlalchemy import Integer
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class SchemaCompatibility(Base):
    """One row: the lowest revision whose version may run on this schema."""

    __tablename__ = "schema_compatibility"

    lowest_revision: Mapped[int] = mapped_column(Integer, primary_key=True)
