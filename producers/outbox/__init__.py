"""Messages in the caller's own transaction: written beside the business rows, sent by a relay.

`table` says what is kept, `writing` puts messages there, `database` reads and removes them, `relay`
brings them to the broker. All of it needs SQLAlchemy (``pip install 'umbel[outbox]'``).
"""

from umbel.config.errors import SettingsError

try:
    import sqlalchemy as _  # noqa: F401
except ImportError as error:
    raise SettingsError("the outbox needs SQLAlchemy: pip install 'umbel[outbox]'") from error

from umbel.producers.outbox.database import OutboxDatabase, Row, Size
from umbel.producers.outbox.relay import Relay
from umbel.producers.outbox.table import outbox_table
from umbel.producers.outbox.writing import Outbox

__all__ = ["Outbox", "OutboxDatabase", "Relay", "Row", "Size", "outbox_table"]
