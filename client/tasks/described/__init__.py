"""Tasks that a schema and a plan describe without code: readers, layers and outcomes by name."""
