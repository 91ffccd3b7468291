"""A small Django project in which every view leaks in its own way."""
