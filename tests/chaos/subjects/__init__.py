"""Apps under chaos; for their workers this directory is on the path, and `effects` beside them."""
