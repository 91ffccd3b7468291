"""An app with spatial columns, for the tests of the PostGIS engine."""
