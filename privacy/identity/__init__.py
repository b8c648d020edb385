"""Keys, certificates and the signatures of released models.

Only here and in `privacy.mechanism` is the cryptography package used.
"""
