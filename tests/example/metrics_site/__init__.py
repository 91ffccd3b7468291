"""The example with conn_guard.contrib.prometheus."""
