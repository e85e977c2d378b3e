"""Organizations and memberships, the source of truth: every change to them, and reading them."""
