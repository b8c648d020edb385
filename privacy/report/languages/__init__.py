"""The first page of the report in languages beside English: a file of sentences for each.

`translation` looks a sentence up; what has no translation stays English.
"""
