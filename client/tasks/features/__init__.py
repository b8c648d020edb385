"""Public features: what a row is turned into before anything is learnt, each row by itself.

Nothing here was computed from anybody's rows, but pretrained backbones, which say so.
"""
