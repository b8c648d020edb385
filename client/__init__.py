"""What a data owner runs: it trains locally, and nothing unpaid leaves through it."""
