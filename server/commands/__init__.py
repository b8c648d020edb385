"""The commands of tacit-server."""
