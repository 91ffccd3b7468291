"""The output formats of a report, one module for each."""
