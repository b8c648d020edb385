"""Task packages at work: approved bytes become a Task; reading and encoding run in a closed child.

The trainer, clipping, noise, ledger and door stay the product's.
"""
