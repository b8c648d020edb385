"""The site's process: its connection to the coordinator, credentials, received plans."""
