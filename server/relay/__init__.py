"""Relays: a party that is a coordinator to its own sites, and passes their sum upward.

What it is told and what it answers, how a coordinator judges that, and the relay itself.
"""
