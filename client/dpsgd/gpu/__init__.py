"""What runs on a GPU by code of our own: noise, from CUDA source that is compiled at first use.

Nothing in this folder has run on a GPU yet; its source is compiled and compared without one.
"""
