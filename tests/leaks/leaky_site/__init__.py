"""This room holds a small Django project in which every view leaks in a way of its own."""
