"""The page "Sessions" in Django's admin, which shows sessions and ends those that are due."""
