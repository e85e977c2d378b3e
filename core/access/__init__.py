"""Who may call: users, service accounts and their keys, invitations, and repeated requests."""
