"""What a researcher starts from: a task package for each kind of data, and made-up drives."""
