"""What a researcher runs: a whole federation in one process, through the shipped apps."""
