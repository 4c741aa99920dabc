"""What runs: the demo and the studies behind the documentation."""
