"""Secure aggregation: sites mask their updates so that a coordinator learns their sum alone.

Values in, values out: no file, no socket, no clock. docs/secure-aggregation.md has the proofs.
"""
