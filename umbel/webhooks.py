"""For the receivers of callbacks to URLs.

    from umbel import Completed, Failed, webhooks

    told = webhooks.verify(body, headers, secrets, Completed[Parcel], Failed)

Any library for `Standard Webhooks <https://www.standardwebhooks.com>`_ verifies them too, in any
language.
"""

from umbel.config.errors import InvalidWebhook
from umbel.jobs.webhooks import verify

__all__ = ["InvalidWebhook", "verify"]
