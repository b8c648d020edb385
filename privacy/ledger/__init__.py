"""What a site has spent: an append-only, hash-chained file that is written before data is read.

`heads` binds it to the coordinator's record, `recovery` mends what a crash left.
"""
