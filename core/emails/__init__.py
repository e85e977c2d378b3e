"""Email: a queue in the database, templates, and the sender."""
