"""Opt-in integrations with other packages; no other module of conn_guard imports them."""
