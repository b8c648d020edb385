"""The one function that adds noise, the draws it is made of, and their compiled kernel.

A fault here breaks the guarantee itself.
"""
