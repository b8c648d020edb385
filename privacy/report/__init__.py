"""The audit report: every figure computed again from ledgers, heads and the plan, and shown.

What does not agree is an inconsistency, and the report says so.
"""
