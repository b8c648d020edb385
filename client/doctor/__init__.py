"""What keeps a site from taking part: every check with its next step."""
