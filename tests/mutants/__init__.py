"""Mutation testing of the privacy path: changes that break a promise must fail a test.

`planted.toml` holds mutations chosen by hand, `operators` draws random ones, `run` tries them.
"""
