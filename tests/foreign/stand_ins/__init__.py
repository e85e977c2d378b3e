"""What `make foreign` installs and starts: other people's stand-ins for Stripe, pinned, each a process of its own."""
