"""Service accounts: each may have several API keys, and it owns event sources and webhook endpoints.

Each key that exists gets an account of its own, with the key's name and the key's id. So the caller names of
idempotency records and the actors of events stay right.

A webhook endpoint that exists has no owner, because nobody recorded which key added it. No account sees it over the
API until an operator gives it to one by ``billing-sync webhooks assign``. Its deliveries go on. A source from which
messages came has no owner either: it belongs to the first account that sends from it over HTTP.
"""

import sqlalchemy as sa
from alembic import op

revision = "17"
down_revision = "16"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.execute("INSERT INTO service_accounts (id, name, created_at) SELECT id, name, created_at FROM api_keys")
    op.add_column("api_keys", sa.Column("account_id", sa.String(16), nullable=False, server_default=""))
    op.execute("UPDATE api_keys SET account_id = id")
    op.add_column("api_keys", sa.Column("expires_at", _TIME, nullable=True))
    op.create_table(
        "event_sources",
        sa.Column("source", sa.String(255), primary_key=True),
        sa.Column("account_id", sa.String(16), sa.ForeignKey("service_accounts.id"), nullable=False),
        sa.Column("bound_at", _TIME, nullable=False),
    )
    op.add_column("service_events", sa.Column("sent_id", sa.String(255), nullable=True))
    for table in ("service_events", "events", "link_history"):
        op.add_column(table, sa.Column("key_id", sa.String(16), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("account_id", sa.String(16), nullable=True))
