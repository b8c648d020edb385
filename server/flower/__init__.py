"""The ServerApp for a SuperLink of stock Flower, without the protections of `server.fleet`."""
