"""The coordinator's rounds: ask, judge, combine, record, and stop or go on."""
