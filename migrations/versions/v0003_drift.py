"""Drift checks: the runs, what the providers listed, and the findings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
OBJECT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "drift_plans",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("plan_id", sa.String(length=64), nullable=True),
        sa.Column("token", sa.String(length=36), nullable=False),
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("cursor", sa.String(length=255), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("counts", OBJECT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("touched_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("applied_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("plan_id"),
    )
    op.create_index("ix_drift_plans_started_at", "drift_plans", ["started_at"], unique=False)
    op.create_table(
        "drift_sightings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("noun", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("seen", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_plans.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "provider", "noun", "id"),
    )
    for name in ("org_id", "customer_id"):
        op.create_index(
            f"ix_drift_sightings_{name}", "drift_sightings", ["run_id", "provider", "noun", name], unique=False
        )
    op.create_table(
        "drift_findings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("repairable", sa.Boolean(), nullable=False),
        sa.Column("found", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_plans.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )
