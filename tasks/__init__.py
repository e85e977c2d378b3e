"""The Celery tasks: names, queues, retries, and which event starts which task. The state is in the database."""
