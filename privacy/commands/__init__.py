"""The commands of `tacit-privacy`, a module a subject; each adds itself to the app."""
