"""Code that both providers share: deadlines, inline retries and the failure table."""
