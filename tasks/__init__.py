"""What Celery runs: names, retry policy, and which event wakes which task. Celery wakes; it keeps no truth."""
