"""Backups of the database: taken beside a running system, checked by reading them back, deleted by age."""
