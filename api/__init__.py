"""HTTP API for users and services. A route only parses, calls core and responds; one table grants the permission."""
