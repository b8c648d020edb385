"""The resident coordinator: its queue, its proposals, the runs it plays, and what it reports."""
