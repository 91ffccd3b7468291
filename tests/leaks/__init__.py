"""Where Django leaves sessions behind, on real servers: this room holds the leak matrix. ``python
-m tests.leaks`` runs it.
"""
