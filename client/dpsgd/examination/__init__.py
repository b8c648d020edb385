"""Whether a model keeps its examples apart, found out on made-up rows: the rows, what a model
makes of them, and the verdict."""
