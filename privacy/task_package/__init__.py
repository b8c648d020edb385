"""Task packages as data: the file and its digest, the manifest, what the source says; nothing runs.

Where the bytes come from does not matter: whoever reads one here runs no line of it.
"""
