"""The pure core: events, budgets, plans, policies, ledgers and reports; no torch, no Flower."""
