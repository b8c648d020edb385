"""What releases cost: events, budgets, epsilon by two accountants, and the trade-off curve.

A false number here makes every claim false. Only `accountants` knows dp_accounting.
"""
