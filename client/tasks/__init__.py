"""What is learnt, and from which rows: the tasks, their encodings, models and losses.

Everything here is public except the rows themselves.
"""
