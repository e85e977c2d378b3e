"""HTTP for people and services. Thin: a route parses, is permitted by one table, calls core and answers."""
