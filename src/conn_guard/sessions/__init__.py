"""Sessions on the server: which to end, how the reaper ends them, and how it reports."""
