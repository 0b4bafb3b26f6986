"""Contracts, jobs, what is known of a job while it runs, and files by reference."""

if not __name__.startswith("umbel."):
    raise ImportError(
        f"{__name__!r} is a folder of Umbel's checkout: import it as 'umbel.{__name__}'. "
        "A second copy under its bare name would hold classes that equal nothing else."
    )
