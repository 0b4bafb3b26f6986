"""Every promise of the design as a test, with one application file, on each broker."""
