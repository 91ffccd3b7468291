"""The tests of conn_guard: real servers, real sessions, one folder for each of house's rings of
tests.
"""
