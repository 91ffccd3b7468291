"""Measurements of conn_guard's cost and effect; they are run by hand and are no tests."""
