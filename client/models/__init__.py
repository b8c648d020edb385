"""Which released models a site keeps, trusts and loads."""
