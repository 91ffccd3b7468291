"""The leaky project with the metrics of its connections, as docs/how-to/export-metrics.md says."""
