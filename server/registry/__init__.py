"""Which sites are enrolled, what their ledgers' heads are, and the coordinator's signatures."""
