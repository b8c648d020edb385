"""What files and databases hold, as raw columns: one module for each form."""
