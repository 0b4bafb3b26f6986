"""Settings, the error tree, safe Celery defaults, the embedded server and the state store."""

if not __name__.startswith("umbel."):
    raise ImportError(
        f"{__name__!r} is a folder of Umbel's checkout: import it as 'umbel.{__name__}'. "
        "A second copy under its bare name would hold classes that equal nothing else."
    )
