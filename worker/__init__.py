"""The processes: settings, the Celery app, relay, beat, command line; the only place that sees everything."""
