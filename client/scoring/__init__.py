"""From files of rows to files of predictions, in this process, in several, or on a cluster."""
