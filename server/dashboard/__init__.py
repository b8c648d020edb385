"""The coordinator's read-only page on a run."""
