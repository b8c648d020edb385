"""DP-SGD on one site: per-example norms, clipped sums, noise and the training loop."""
