"""Real processes for the tests: servers, workers and pytest-celery's nodes, without Docker."""
