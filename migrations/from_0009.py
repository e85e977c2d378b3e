"""The conversion of a database of schema 0009, which was the last one before the first version.

Tables, columns and stored values get the names of the glossary, and billing links get explicit states. Nothing
is written at a provider afterwards. Drift reports are dropped: the next check makes them anew.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

MOMENT = sa.DateTime(timezone=True)
OBJECT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

INDEXES = {
    "received_events": ("ix_received_events_subject", "ix_received_events_verdict"),
    "billing_links": ("ix_billing_links_due", "ix_billing_links_parked"),
    "kept_answers": ("ix_kept_answers_expires_at",),
    "hints": ("ix_hints_stored", "ix_hints_received_at"),
    "invitations": ("uq_invitations_open",),
    "mails": ("uq_mails_cause", "ix_mails_due", "ix_mails_given_up", "ix_mails_org_id", "ix_mails_closed_at"),
}
TABLES = {
    "billers": "provider_status",
    "hints": "provider_webhooks",
    "received_events": "service_events",
    "mails": "emails",
    "people": "users",
    "kept_answers": "idempotency_records",
    "jobs": "job_locks",
}
# By the new name of the table.
COLUMNS = {
    "organizations": {"billing_version": "version"},
    "billing_links": {
        "wanted_version": "desired_version",
        "made_at": "created_at",
        "applied_customer": "customer_fingerprint",
        "next_attempt_at": "not_before",
        "rest_until": "cooldown_until",
        "sweep_at": "next_sweep_at",
        "hinted": "checks_requested",
        "looked": "checks_done",
        "payment": "payment_status",
    },
    "provider_status": {
        "failures": "consecutive_failures",
        "stop_kind": "breaker_reason",
        "stop_message": "breaker_message",
        "stopped_since": "open_since",
    },
    "service_events": {"verdict": "status"},
    "provider_webhooks": {"concern": "effect"},
    "idempotency_records": {"key": "idempotency_key"},
    "invitations": {"mailed": "emails_sent"},
    "emails": {"waits_for_version": "after_version"},
    "webhook_endpoints": {
        "generation": "secret_generation",
        "disabled_because": "disabled_reason",
        "failures": "consecutive_failures",
        "rest_until": "backoff_until",
    },
    "webhook_deliveries": {"made_at": "created_at"},
}
VALUES = {
    ("billing_links", "state"): {"open": "active", "held": "on_hold"},
    ("billing_links", "payment_status"): {"refused": "payer_rejected"},
    ("billing_links", "error_kind"): {"waiting": "waiting_for_payer", "unsettled": "outcome_unknown"},
    ("billing_links", "error_code"): {
        "second_payer": "double_charging",
        "other_charger": "charging_provider_would_change",
        "billing_id_twice": "customer_id_in_use",
        "billing_id_lost": "customer_id_not_imported",
        "changed_there": "changed_at_provider",
    },
    ("service_events", "status"): {"accepted": "applied", "refused": "rejected"},
    ("provider_webhooks", "state"): {"refused": "rejected"},
    ("provider_webhooks", "effect"): {
        "look": "check",
        "began": "started",
        "failed": "payment_failed",
        "refused": "payer_rejected",
        "taken": "payer_accepted",
    },
    ("invitations", "state"): {"open": "pending"},
    ("emails", "state"): {"open": "pending", "given_up": "failed", "overtaken": "stale"},
    ("job_locks", "name"): {"billing.plan": "drift.check", "mails.send": "emails.send"},
}


def convert() -> None:
    _rename()
    _add_states()
    op.add_column("organizations", sa.Column("downgrade_recheck_at", MOMENT, nullable=True))


def _rename() -> None:
    # A partial index names a column and a value in its condition, so it is created again after both are renamed.
    for table, indexes in INDEXES.items():
        for index in indexes:
            op.drop_index(index, table_name=table)
    for table, new_name in TABLES.items():
        op.rename_table(table, new_name)
    for table, columns in COLUMNS.items():
        for column, new_name in columns.items():
            op.alter_column(table, column, new_column_name=new_name)
    for (table, column), values in VALUES.items():
        for value, new_value in values.items():
            rows = sa.table(table, sa.column(column))
            op.execute(rows.update().where(rows.c[column] == value).values({column: new_value}))
    _rewrite_documents()
    _create_indexes()
    _recreate_drift_tables()


def _rewrite_documents() -> None:
    """Stored responses are repeated for a day, and synced events may be sent again: both get the new field names."""
    op.execute("UPDATE idempotency_records SET caller = 'user:' || substr(caller, 8) WHERE caller LIKE 'person:%'")
    op.execute(
        """UPDATE idempotency_records SET body = replace(body, '"sync":{"sequence":', '"sync":{"version":')"""
        """ WHERE body LIKE '%"sync":{"sequence":%'"""
    )
    op.execute(
        """UPDATE idempotency_records SET body = replace(body, '"generation":', '"secret_generation":')"""
        """ WHERE body LIKE '%"generation":%'"""
    )
    renamed = (
        "(data - 'through') || jsonb_build_object('version', data->'through')"
        if op.get_bind().dialect.name == "postgresql"
        else "json_set(json_remove(data, '$.through'), '$.version', json_extract(data, '$.through'))"
    )
    op.execute(f"UPDATE events SET data = {renamed} WHERE type = 'organization.synced'")  # noqa: S608 - constants


def _create_indexes() -> None:
    op.create_index("ix_service_events_subject", "service_events", ["subject", "type", "status"])
    op.create_index("ix_service_events_status", "service_events", ["status", "received_at"])
    has_work = "applied_version < desired_version OR intent IS NOT NULL OR checks_done < checks_requested"
    _partial(
        "ix_billing_links_due", "billing_links", ["provider", "next_sweep_at"], f"state = 'active' AND ({has_work})"
    )
    _partial("ix_billing_links_parked", "billing_links", ["provider"], "state <> 'active'")
    op.create_index("ix_idempotency_records_expires_at", "idempotency_records", ["expires_at"])
    _partial("ix_provider_webhooks_stored", "provider_webhooks", ["due_at"], "state = 'stored'")
    op.create_index("ix_provider_webhooks_received_at", "provider_webhooks", ["received_at"])
    _partial("uq_invitations_pending", "invitations", ["org_id", "email_key"], "state = 'pending'", unique=True)
    op.create_index("uq_emails_cause", "emails", ["cause", "kind", "recipient"], unique=True)
    _partial("ix_emails_due", "emails", ["next_attempt_at"], "state = 'pending'")
    _partial("ix_emails_failed", "emails", ["created_at"], "state = 'failed'")
    op.create_index("ix_emails_org_id", "emails", ["org_id", "kind", "created_at"])
    _partial("ix_emails_closed_at", "emails", ["closed_at"], "state <> 'pending'")


def _partial(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _recreate_drift_tables() -> None:
    for table in ("drift_findings", "drift_sightings", "drift_plans"):
        op.drop_table(table)
    op.create_table(
        "drift_reports",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("report_id", sa.String(length=64), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=False),
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("cursor", sa.String(length=255), nullable=True),
        sa.Column("processed", sa.Integer(), nullable=False),
        sa.Column("counts", OBJECT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("heartbeat_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("repair_started_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("report_id"),
    )
    op.create_index("ix_drift_reports_started_at", "drift_reports", ["started_at"])
    op.create_table(
        "drift_listings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("object_type", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("observed", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_reports.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "provider", "object_type", "id"),
    )
    for name in ("org_id", "customer_id"):
        op.create_index(f"ix_drift_listings_{name}", "drift_listings", ["run_id", "provider", "object_type", name])
    op.create_table(
        "drift_findings",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("org_id", sa.String(length=64), nullable=True),
        sa.Column("repairable", sa.Boolean(), nullable=False),
        sa.Column("body", OBJECT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["drift_reports.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )


def _add_states() -> None:
    """From NULLs, empty strings and error words to states."""
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
        """UPDATE billing_links SET state = 'on_hold', error_kind = 'conflict',
                error_code = CASE WHEN error_message LIKE '%Lago charges another Stripe customer%'
                    THEN 'payer_changed' ELSE error_code END,
                error_message = replace(
                    error_message, 'billing-sync retry ' || org_id, 'billing-sync resolve ' || org_id || ' --ours')
            WHERE state = 'parked' AND error_code = 'changed_at_provider'"""
    )
    op.drop_column("billing_links", "cooldown_until")
    if op.get_bind().dialect.name == "postgresql":  # SQLite cannot drop a default; nothing inserts without a value
        for column in ("customer_state", "plan_state"):
            op.alter_column("billing_links", column, server_default=None)
