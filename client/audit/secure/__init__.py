"""Conformance of secure aggregation: made-up parties through the real replies, and what is seen."""
