"""The database: engine and transactions, column types, job locks, and the tables in ``models``."""
