"""The leak, its end and its cure, on a real server: `manage.py demo`."""
