"""A plan's keys: what each may hold, the tables, and all of them as one contract."""
