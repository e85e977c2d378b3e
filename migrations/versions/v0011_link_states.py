"""Explicit states of the billing links, and one time before which no sync attempt is made."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for column, default in (("customer_state", "absent"), ("plan_state", "unknown")):
        length = 12 if column == "customer_state" else 8
        op.add_column(
            "billing_links", sa.Column(column, sa.String(length=length), nullable=False, server_default=default)
        )
    op.add_column("billing_links", sa.Column("not_before_reason", sa.String(length=12), nullable=True))
    op.add_column("billing_links", sa.Column("waiting_since", MOMENT, nullable=True))
    op.execute(
        """UPDATE billing_links SET
            customer_state = CASE
                WHEN customer_id IS NULL THEN 'absent'
                WHEN customer_fingerprint IS NULL THEN 'unconfirmed'
                WHEN customer_fingerprint = '' THEN 'unknown'
                ELSE 'applied' END,
            customer_fingerprint = NULLIF(customer_fingerprint, ''),
            plan_state = CASE
                WHEN applied_plan IS NULL THEN 'unknown' WHEN applied_plan = '' THEN 'ending' ELSE 'applied' END,
            applied_plan = NULLIF(applied_plan, '')"""
    )
    op.execute("""UPDATE billing_links SET not_before_reason = 'backoff' WHERE not_before IS NOT NULL""")
    op.execute(
        """UPDATE billing_links SET not_before = cooldown_until, not_before_reason = 'cooldown'
            WHERE cooldown_until IS NOT NULL AND (not_before IS NULL OR not_before <= cooldown_until)"""
    )
    op.execute(
        """UPDATE billing_links SET waiting_since = error_at, error_kind = NULL, error_code = NULL,
                error_message = NULL, error_request_id = NULL, error_at = NULL,
                not_before_reason = CASE WHEN not_before IS NULL THEN NULL ELSE 'payer' END
            WHERE error_kind = 'waiting_for_payer'"""
    )
    # What somebody changed at a provider was parked, and any change of the organization overwrote it.
    op.execute(
        """UPDATE billing_links SET state = 'on_hold', error_kind = 'conflict'
            WHERE state = 'parked' AND error_code = 'changed_at_provider'"""
    )
    op.drop_column("billing_links", "cooldown_until")
    op.add_column("organizations", sa.Column("downgrade_recheck_at", MOMENT, nullable=True))
