"""What the media service does: classify, resize and transcode, as plain functions on local files."""
