"""Our end of a connection: who owns it, and when it is closed."""
