"""Statistics of an audit: lower bounds on epsilon from observed guesses, and p-values."""
