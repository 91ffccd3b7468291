"""Names the lines that run querying code in a thread or task which closes no connection."""
