"""The leak matrix: sessions that Django leaves on real servers. ``python -m tests.leaks``."""
