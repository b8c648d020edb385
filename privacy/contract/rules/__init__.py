"""What a plan's keys must say together: one named rule each, in one table."""
