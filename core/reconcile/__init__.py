"""Makes one billing link match its organization: lease, read, compare, call, write back."""
