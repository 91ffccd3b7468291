"""The tests of conn_guard, on real servers; CONTRIBUTING.md says what each folder needs."""
