"""The processes: settings, Celery app, relay, beat and command line. Only this package may import all others."""
