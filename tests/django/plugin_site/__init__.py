"""A project of somebody else's; pytest runs its tests, with the plugin, in a process of its own."""
