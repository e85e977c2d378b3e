"""Access: users, service accounts and their API keys, invitations, and idempotency records."""
