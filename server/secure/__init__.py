"""Rounds of secure aggregation: the coordinator asks in five steps, and learns one sum."""
