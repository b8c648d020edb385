"""Ways to run the simulated sites: in this process, in several, on Ray, or as stacked models."""
