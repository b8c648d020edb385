"""What `tacit-simulate new` writes: a task package for each kind of data, to be changed."""
