"""What a site runs to convince itself: conformance of the release, canaries, attacks."""
