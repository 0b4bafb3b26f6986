"""The web producer: `create_app` makes a FastAPI application of an app's jobs."""

from umbel.producers.web.app import create_app

__all__ = ["create_app"]
