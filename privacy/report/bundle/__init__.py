"""The report as a signed folder that others can verify: evidence, seal, verification."""
