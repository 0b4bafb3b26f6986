"""The media service's work as plain functions on local files."""
