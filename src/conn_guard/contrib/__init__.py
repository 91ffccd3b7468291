"""Opt-in doors to other packages: this room holds one module for each, and nothing of conn_guard
imports any.
"""
