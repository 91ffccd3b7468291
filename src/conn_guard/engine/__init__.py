"""Ring 2: this room holds the database engines, thin subclasses of Django's own that never leak a
connection.
"""
