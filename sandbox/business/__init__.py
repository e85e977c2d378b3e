"""A business that exists already: customers, subscriptions and prices at both providers, by seed, with their truth."""
