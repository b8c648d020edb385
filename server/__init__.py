"""What a coordinator runs: it asks, combines what the sites release, and remembers."""
