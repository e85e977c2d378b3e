"""The Celery app for Celery's own tools: ``celery -A worker.main_app flower``, ``inspect``, ``report``.

Importing it reads the settings. Workers and beat are started by ``billing-sync``, which knows their options.
"""

from worker.app import build
from worker.settings import read

app = build(read())
