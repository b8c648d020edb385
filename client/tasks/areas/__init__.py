"""Shipped tasks of an area each: speech, language by person, recommendation."""
