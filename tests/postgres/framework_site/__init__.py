"""A project whose tasks leave connections open, for the workers of many frameworks."""
