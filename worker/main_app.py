"""Celery app for Celery's own tools: ``celery -A worker.main_app report``, ``inspect``.

``inspect`` needs CELERY_REMOTE_CONTROL in the workers. Importing it reads the settings. ``billing-sync`` starts workers
and beat with their options.
"""

from worker.config.settings import read
from worker.wiring.celery_app import build

app = build(read())
