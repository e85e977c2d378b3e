"""What both providers share: deadlines, inline retries, and what is done about each failure."""
