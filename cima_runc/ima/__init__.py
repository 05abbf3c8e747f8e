"""The kernel's own measurements: templates, log entries, the log."""
