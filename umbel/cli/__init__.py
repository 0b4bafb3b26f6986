"""Sub-commands of ``celery -A app``, found by their entry points."""
