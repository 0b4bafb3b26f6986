"""Queues, their names and the transport that carries their messages."""

if not __name__.startswith("umbel."):
    raise ImportError(
        f"{__name__!r} is a folder of Umbel's checkout: import it as 'umbel.{__name__}'. "
        "A second copy under its bare name would hold classes that equal nothing else."
    )
