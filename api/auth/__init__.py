"""Authentication, authorization and the permission table."""
