"""Whole settings, and the ids that the checks must find in them."""
