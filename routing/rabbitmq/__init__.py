"""The Kombu transport for RabbitMQ: py-amqp with a bound on every wait, and nothing lost unheard.

The protocol, the queues and the messages are Kombu's: a plain Celery producer or worker shares a
queue with ours once it declares it alike. What is different, and where:

- `channel`: a publish returns once the server has the message, and raises when the server refused
  it, had no queue for it, or did not say.
- `ahead`: a worker has the next messages before it is done with the last, while jobs are short.
- `connection`: no answer is waited for without an end, and what cannot be read is delivered raw.
- `heartbeats`: a thread says that this process lives, also while its one other thread runs a job.
- `delays`: a message with a time waits for it on the server.
- `runs`: how many runs of a message ended without an outcome.
- `transport`: Kombu's classes with these parts in place.
"""

from umbel.routing.rabbitmq.channel import refusals_named
from umbel.routing.rabbitmq.connection import within
from umbel.routing.rabbitmq.delays import Delays, not_kept
from umbel.routing.rabbitmq.runs import Runs
from umbel.routing.rabbitmq.transport import SSLTransport, Transport
from umbel.routing.refusals import Refused

__all__ = [
    "Delays",
    "Refused",
    "Runs",
    "SSLTransport",
    "Transport",
    "not_kept",
    "refusals_named",
    "within",
]
