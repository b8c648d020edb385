"""The network side: TLS, authentication of sites, liveness, and Flower's SuperLink behind it."""
