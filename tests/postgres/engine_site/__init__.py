"""A site on the engine, tested with Django's own test cases."""
