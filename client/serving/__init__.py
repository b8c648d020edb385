"""The local prediction service over HTTP, for programs on the site's own network."""
