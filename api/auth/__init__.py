"""Who calls, and what the permission table lets them do."""
