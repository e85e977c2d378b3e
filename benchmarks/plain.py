"""Baseline: billing by a plain Celery task, which uses both SDKs as they are and writes one UPDATE at the end.

    celery --app benchmarks.plain worker --concurrency 2

It has no outbox, lease, retry, rate limiter or idempotency, so a crash, a second message or a lost response breaks it.
It only serves to compare the speed.
"""

from __future__ import annotations

import os
from typing import Any

import psycopg
import stripe
from celery import Celery
from lago_python_client.client import Client
from lago_python_client.models import Customer

app = Celery("plain", broker=os.environ.get("PLAIN_BROKER", "redis://127.0.0.1:6379/0"))
app.conf.task_ignore_result = True


@app.task(name="plain.sync")
def sync(org_id: str) -> None:
    stripe.api_key = os.environ["STRIPE_SECRET_KEY"]
    stripe.api_base = os.environ["STRIPE_API_BASE"]
    lago = Client(api_key=os.environ["LAGO_API_KEY"], api_url=os.environ["LAGO_API_URL"])
    with psycopg.connect(os.environ["PLAIN_DATABASE"]) as connection:
        row = connection.execute("SELECT name, stripe_id FROM plain WHERE id = %s", (org_id,)).fetchone()
        if row is None:
            return
        name, stripe_id = row
        customer = stripe.Customer.modify(stripe_id, name=name, metadata={"billing_sync_org_id": org_id})
        customers: Any = lago.customers  # the SDK's own types reject its own call
        lago_customer = customers.create(Customer.parse_obj({"external_id": org_id, "name": name}))
        connection.execute(
            "UPDATE plain SET stripe_id = %s, lago_id = %s, synced_at = now() WHERE id = %s",
            (customer.id, lago_customer.lago_id if lago_customer else None, org_id),
        )


@app.task(name="plain.nothing")
def nothing(_: str) -> None:
    """Used to measure how soon a task starts."""
