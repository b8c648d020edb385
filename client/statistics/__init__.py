"""Statistics of a site: the task whose rows are counted, and the paid release of their sums."""
