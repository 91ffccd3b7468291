"""A project whose jobs leave connections open, for real workers."""
