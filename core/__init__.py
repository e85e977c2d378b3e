"""The domain: no network, no Celery, no environment (``org_manager`` alone looks for its database's address)."""
