"""Code that the tests share and that is no test."""
