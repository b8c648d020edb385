"""The commands of `tacit-client`, a module a subject; each adds itself to the app."""
