"""Whole settings and what is to be said of them: this room holds a corpus of our own and the runner
of any other.
"""
