"""Domain events: their types, and the outbox that stores them with the change that caused them."""
