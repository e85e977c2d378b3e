"""Organizations and memberships, the source of truth: all changes to them, and the queries that read them."""
