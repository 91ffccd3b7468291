"""A project whose jobs leave connections behind: this room holds what its workers run."""
