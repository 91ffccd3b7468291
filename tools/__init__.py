"""Programs of a checkout that the installed package doesn't need."""
