"""A site on the engine, tested with Django's own test cases: this room holds its settings, its
address and its cases.
"""
