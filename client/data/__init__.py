"""Files to rows: the readers of the site's own data."""
