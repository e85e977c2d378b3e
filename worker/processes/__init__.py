"""The processes that are no Celery worker: relay and the embedded mode."""
