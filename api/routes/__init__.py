"""Routes: one module for each resource. Paths are written out in full, as in the permission table."""
