"""Ring 2: database engines that subclass Django's own and close every connection they open."""
