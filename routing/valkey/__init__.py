"""The Kombu transport for Valkey and Redis: Kombu's lists and messages, safe and fast.

A plain Celery producer or worker shares a queue with ours, and Flower sees the queues. What is
different from Kombu's own transport, and where:

- `elements`: a list's element is read whatever it is; what is no Kombu message comes as raw bytes.
- `scripts`: the few steps that must be one step on the server.
- `lease`: this process as a consumer that is alive as long as it says so; who stops saying so
  loses what it holds to the others, and is told.
- `claims`: what one channel takes from its queues: in batches, without waiting, and it is in a
  ready list or claimed at every instant.
- `channel`, `transport`: Kombu's classes with these parts in place.
"""

from umbel.routing.valkey.elements import DELIVERIES_HEADER, RAW_HEADER
from umbel.routing.valkey.lease import CLAIM_PROPERTY, Holding, holding, leases
from umbel.routing.valkey.outlet import Outlet
from umbel.routing.valkey.transport import Leased

__all__ = [
    "CLAIM_PROPERTY",
    "DELIVERIES_HEADER",
    "RAW_HEADER",
    "Holding",
    "Leased",
    "Outlet",
    "holding",
    "leases",
]
