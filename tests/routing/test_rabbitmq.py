"""RabbitMQ: what was sent is there, long jobs run once, and a worker goes on whatever arrives."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from time import monotonic, time
from types import ModuleType
from typing import Any

import kombu.pools
import pytest
from amqp.exceptions import ConnectionForced, RecoverableConnectionError
from support.process import eventually
from support.servers import MAX_MESSAGE_BYTES

from umbel import BrokerUnavailable, JobFailed, Message, MessageRefused, Umbel
from umbel.consumers.deadletters import Kind, Reason
from umbel.routing.connections import Connection
from umbel.routing.rabbitmq import Refused, within
from umbel.routing.rabbitmq.channel import Channel
from umbel.routing.rabbitmq.delays import SOON_S
from umbel.routing.rabbitmq.heartbeats import heartbeats

pytestmark = pytest.mark.brokers("rabbitmq")

APP = """
import os, time
from pathlib import Path
from umbel import JobContext, Message, Retry, Umbel

app = Umbel("shop", broker_heartbeat=float(os.environ.get("HEARTBEAT", 5)))
if "CERTIFICATE" in os.environ:
    app.conf.broker_use_ssl |= {"ca_certs": os.environ["CERTIFICATE"]}
MARKS = Path(__file__).parent / "marks"

def mark(what):
    with MARKS.open("a") as file:
        file.write(f"{what}\\n")

class Say(Message, name="shop.say", version=1):
    text: str = ""

@app.job
def say(message: Say) -> str:
    mark(message.text)
    return message.text

@app.job(name="shop.stubborn", queue="late", retry=Retry(delays_s=[1.2, 1.2]))
def stubborn(message: Say, context: JobContext) -> int:
    mark(f"{time.time()}")
    if context.attempt < 3:
        raise ValueError
    return context.attempt

@app.job(name="shop.elsewhere", queue="too.late")
def elsewhere(message: Say) -> None:
    mark("elsewhere")

class Nap(Message, name="shop.nap", version=1):
    seconds: float

@app.job(queue="naps")
def nap(message: Nap) -> None:
    mark("nap")
    time.sleep(message.seconds)

class Film(Message, name="shop.film", version=1):
    pass

@app.job(queue="films", timeout_s=3600)
def film(message: Film) -> None:
    mark("film")
"""


@pytest.fixture
def shop(write_app) -> ModuleType:
    """The app above."""
    return write_app(APP)


def marks(shop: ModuleType) -> list[str]:
    """What the jobs have marked so far."""
    return shop.MARKS.read_text().splitlines() if shop.MARKS.exists() else []


@contextmanager
def connected(url: str, **options: Any) -> Iterator[Any]:
    """A channel of a connection of ours, with a queue to send to."""
    options = {"confirm_publish": True, "confirm_timeout": 5} | options
    with Connection(url, transport_options=options) as connection:
        channel = connection.default_channel
        channel.queue_declare("q", durable=True, auto_delete=False)
        yield channel


def read(connection: Any) -> None:
    """What is there."""
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=0)


def publish(channel: Any, body: str, routing_key: str = "q", **properties: Any) -> None:
    """A durable message, if nothing else is said."""
    channel.basic_publish(durable(channel, body, **properties), routing_key=routing_key)


def durable(channel: Any, body: str, **properties: Any) -> Any:
    """A message."""
    return channel.prepare_message(body.encode(), properties={"delivery_mode": 2} | properties)


# What was sent is there.


def test_a_queue_deleted_behind_our_back_is_an_error_at_send(shop, rabbitmq):
    """Never silence; and the next send declares the queue anew."""
    shop.say.send(shop.Say())
    rabbitmq.client().default_channel.queue_delete("shop")
    with pytest.raises(MessageRefused, match=r"no queue: 'shop' \(312 NO_ROUTE\)"):
        shop.say.send(shop.Say(text="lost?"))
    shop.say.send(shop.Say(text="again"))
    assert [message.body.count(b"again") for message in rabbitmq.waiting("shop")] == [1]


def test_that_flower_cannot_be_told_is_in_no_messages_way(shop, rabbitmq, caplog):
    """Its exchange is there with other arguments, which closes the channel."""
    rabbitmq.client().default_channel.exchange_declare("shop.events", "fanout", auto_delete=False)
    shop.say.send(shop.Say())
    shop.say.send_many([shop.Say()] * 150)
    assert len(rabbitmq.waiting("shop")) == 151
    assert caplog.text.count("Flower is told of no message that this process sends: ") == 1


def test_a_message_that_is_too_large_is_an_error_at_send(shop, rabbitmq):
    """The server closes the channel; the next message goes out all the same."""
    with pytest.raises(MessageRefused, match="larger than configured max size"):
        shop.say.send(shop.Say(text="x" * MAX_MESSAGE_BYTES))
    shop.say.send(shop.Say(text="small"))
    assert len(rabbitmq.waiting("shop")) == 1


def test_a_queue_that_is_full_is_an_error_at_send(shop, rabbitmq):
    """By an operator's policy: our queues refuse what they cannot hold, and drop nothing."""
    shop.say.send(shop.Say())
    limit = {"pattern": "shop", "definition": {"max-length": 1}, "apply-to": "queues"}
    rabbitmq.api("PUT", f"policies/{rabbitmq.vhost}/full", limit)

    def refused() -> bool:  # one more may fit, and the policy takes its time
        try:
            shop.say.send(shop.Say())
        except MessageRefused as error:
            return "could not keep it" in str(error)
        return False

    eventually(refused)


def test_a_confirmation_that_comes_late_is_not_taken_for_another(rabbitmq):
    """A send that was interrupted leaves the channel as it should be for the next."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    with connected(rabbitmq.url) as channel:
        publish(channel, "first")
        before = signal.signal(signal.SIGALRM, interrupt)
        rabbitmq.freeze()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                publish(channel, "second")
        finally:
            rabbitmq.thaw()
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(Refused, match="no queue: 'nowhere'"):
            publish(channel, "third", routing_key="nowhere")
        publish(channel, "fourth")
    assert [one.body for one in rabbitmq.waiting("q")] == [b"first", b"second", b"fourth"]


def test_a_time_for_all_waits_together(rabbitmq):
    """`within` bounds what is waited for on a connection that is there, and a new connection."""
    with connected(rabbitmq.url) as channel:
        rabbitmq.freeze()
        try:
            with within(0.3), pytest.raises(RecoverableConnectionError, match="no answer within"):
                channel.queue_declare("q", passive=True)
            assert channel.connection is None  # what it would say later is not waited for
            with within(0.3), pytest.raises(RecoverableConnectionError, match="no answer within"):
                Connection(rabbitmq.url).transport.establish_connection()
        finally:
            rabbitmq.thaw()


def test_what_is_not_durable_is_not_waited_for(rabbitmq):
    """Events may reach nobody, and their channel is not in the way of the others'."""
    with connected(rabbitmq.url) as channel:
        publish(channel, "an event", routing_key="nowhere", delivery_mode=1)
        publish(channel, "a job")
        publish(channel, "an event", routing_key="nowhere", delivery_mode=1)
        publish(channel, "a job")
    assert [one.body for one in rabbitmq.waiting("q")] == [b"a job"] * 2


def test_messages_may_be_confirmed_together(rabbitmq):
    """They are all there at its end, or there is an error."""
    with connected(rabbitmq.url) as channel:

        def send(many: int, queue: str = "q") -> None:
            messages = (durable(channel, str(number)) for number in range(many))
            channel.publish_together((message, "", queue) for message in messages)

        send(100)
        assert [one.body for one in rabbitmq.waiting("q")] == [b"%d" % n for n in range(100)]
        with pytest.raises(Refused, match="no queue: 'nowhere'"):
            send(3, "nowhere")
        send(1)
        rabbitmq.freeze()
        try:
            with within(0.5), pytest.raises(RecoverableConnectionError, match="no answer"):
                send(1)
        finally:
            rabbitmq.thaw()


@pytest.fixture
def waits(monkeypatch) -> list[int]:
    """How many messages were confirmed together, each time."""
    waits: list[int] = []
    publish_together = Channel.publish_together

    def counted(channel: Channel, letters: list[tuple[Any, str, str]]) -> None:
        waits.append(sum(not exchange for _, exchange, _ in letters))
        publish_together(channel, letters)

    monkeypatch.setattr(Channel, "publish_together", counted)
    return waits


def test_many_are_confirmed_together(shop, rabbitmq, waits):
    """In their order, also after a lost connection; an error where not all are taken."""

    def send() -> list[str]:
        return [one.id for one in shop.say.send_many(shop.Say(text=str(n)) for n in range(250))]

    sent = send()
    assert waits == [100, 100, 50]
    rabbitmq.restart()
    sent += send()
    assert [one.headers["id"] for one in rabbitmq.waiting("shop")] == sent
    rabbitmq.client().default_channel.queue_delete("shop")
    with pytest.raises(MessageRefused, match=r"no queue: 'shop' \(312 NO_ROUTE\)"):
        send()
    rabbitmq.freeze()
    try:
        with within(6), pytest.raises(BrokerUnavailable):
            send()
    finally:
        rabbitmq.thaw()


def test_many_large_ones_are_confirmed_by_the_megabyte(shop, rabbitmq, waits):
    """Or there would be no time for so many at once."""
    sizes = [400_000, 400_000, 400_000, 1_500_000, 1, 1]
    shop.say.send_many(shop.Say(text="x" * size) for size in sizes)
    assert waits == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("guest:wrong@127.0.0.1:{port}/{vhost}", "Login was refused"),
        ("guest:guest@127.0.0.1:{port}/nowhere", "vhost nowhere not found"),
    ],
)
def test_who_may_not_enter_is_told_at_send(shop, rabbitmq, address, answer):
    """In the server's words."""
    shop.app.conf.broker_url = "amqp://" + address.format(port=rabbitmq.port, vhost=rabbitmq.vhost)
    with pytest.raises(MessageRefused, match=answer):
        shop.say.send(shop.Say())


def test_a_server_is_who_its_certificate_says(rabbitmq, app_dir):
    """`amqps://` verifies the certificate, and that it is of the host of the URL."""

    def send(host: str = "127.0.0.1", **trust: Any) -> None:
        kombu.pools.reset()  # they are shared by what has one URL
        app = Umbel("shop", broker=rabbitmq.tls_url.replace("127.0.0.1", host))
        app.conf.broker_use_ssl |= trust

        class Hello(Message, name="shop.hello", version=1):
            pass

        @app.job
        def hello(message: Hello) -> None: ...

        hello.send(Hello())

    trusted = {"ca_certs": str(rabbitmq.certificate)}
    send(**trusted)
    assert len(rabbitmq.waiting("shop")) == 1
    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED.*self-signed"):
        send()
    with pytest.raises(BrokerUnavailable, match="Hostname mismatch"):
        send("127.1", **trusted)  # the same machine by another name


# Queues.


def test_a_queue_is_durable_replicated_and_loses_nothing(shop, rabbitmq, start_worker):
    """The declaration, written out: it can never be changed for a queue that is there."""
    start_worker(shop, queues=["shop"])
    queues = {queue["name"]: queue for queue in rabbitmq.api("GET", f"queues/{rabbitmq.vhost}")}
    assert queues["shop"]["durable"]
    assert queues["shop"]["arguments"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 100,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "shop.given-up",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert queues["shop.given-up"]["arguments"] == {"x-queue-type": "quorum"}
    assert {"shop", "shop.given-up"} == {name for name in queues if name.startswith("shop")}


def test_what_the_server_gives_up_is_kept_and_told(shop, rabbitmq, start_worker):
    """The second net, far below ours: a hundred deliveries without an end."""
    shop.say.send(shop.Say(text="poison"))
    channel = rabbitmq.client().default_channel
    shop.app.amqp.net.bind(channel).declare()  # as any worker does

    def returned() -> bool:
        message = channel.basic_get("shop")
        if message:
            channel.basic_reject(message.delivery_tag, requeue=True)
        return message is None and rabbitmq.counts("shop") == (0, 0)

    eventually(returned, 20)
    worker = start_worker(shop, queues=["shop"])
    worker.wait_for_log("RabbitMQ gave up 1 messages: they are in queue shop.given-up")
    [message] = rabbitmq.waiting("shop.given-up")
    assert b"poison" in message.body
    assert message.headers["x-first-death-reason"] == "delivery_limit"


def test_a_queue_with_other_arguments_is_a_clear_error(shop, rabbitmq):
    """At send, and at the start of a worker, which does not try for ever."""
    channel = rabbitmq.client().default_channel
    channel.queue_declare("shop", durable=True, auto_delete=False)
    with pytest.raises(MessageRefused, match=r"inequivalent arg .* for queue 'shop'"):
        shop.say.send(shop.Say())
    done = run_celery(shop, "worker", "-Q", "shop")
    assert done.returncode == 1
    assert "inequivalent arg" in done.stderr
    assert "Its arguments cannot be changed" in done.stderr


def run_celery(shop: ModuleType, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user types it."""
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


# Delays.


@pytest.mark.parametrize("soon_s", [SOON_S, 0], ids=["short", "long"])
def test_a_delay_is_the_servers(shop, rabbitmq, start_worker, monkeypatch, soon_s):
    """Neither a worker's memory nor its place: others run meanwhile, and it comes in time."""
    monkeypatch.setattr("umbel.routing.rabbitmq.delays.SOON_S", soon_s)
    worker = start_worker(shop, queues=["shop"])
    shop.say.send(shop.Say(text="early"))
    sent_at = time()
    handle = shop.say.request(shop.Say(text="late"), delay_s=2.5)
    assert shop.say.request(shop.Say(text="meanwhile")).result(10) == "meanwhile"
    eventually(lambda: rabbitmq.counts("shop") == (0, 0))
    worker.kill()  # nothing of it is in there
    worker.close()
    start_worker(shop, queues=["shop"])
    assert handle.result(20) == "late"
    assert time() - sent_at >= 2.5
    assert marks(shop) == ["early", "meanwhile", "late"]


def test_a_short_delay_has_one_end(shop, rabbitmq):
    """One queue on its way, which knows the time: an outage cannot keep it for longer."""
    begun = time()
    for delay_s in (1.5, 2.5, 3):
        shop.elsewhere.send(shop.Say(), delay_s=delay_s)
    eventually(lambda: rabbitmq.counts("too.late") == (3, 0))
    assert time() - begun >= 2
    deaths = [one.headers["x-death"] for one in rabbitmq.waiting("too.late")]
    assert [(len(death), death[0]["reason"]) for death in deaths] == [(1, "expired")] * 3


def test_a_delayed_retry_comes_back_to_its_queue(shop, rabbitmq, start_worker):
    """Each time after its delay, and nothing that is for a queue whose name ends alike."""
    worker = start_worker(shop, queues=["late"])
    shop.elsewhere.send(shop.Say(), delay_s=1.5)
    assert shop.stubborn.request(shop.Say(), delay_s=1.5).result(30) == 3
    first, second, third = map(float, marks(shop))
    assert min(second - first, third - second) >= 1.2
    assert len(rabbitmq.waiting("too.late")) == 1
    assert "native delayed delivery" not in worker.logs()


# Long jobs.


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_on_solo_a_job_of_many_heartbeats_runs_once(shop, rabbitmq, start_worker, scheme):
    """The job blocks the event loop, and the server hears of the worker all the same."""
    env = {"HEARTBEAT": "1"}
    if scheme == "amqps":
        env |= {"UMBEL_BROKER_URL": rabbitmq.tls_url, "CERTIFICATE": str(rabbitmq.certificate)}
    first, second = (start_worker(shop, pool="solo", queues=["naps"], env=env) for _ in range(2))
    shop.nap.request(shop.Nap(seconds=5)).result(30)
    shop.nap.request(shop.Nap(seconds=0)).result(10)
    eventually(lambda: rabbitmq.counts("naps") == (0, 0))
    assert marks(shop) == ["nap"] * 2
    assert "onnection to broker lost" not in first.logs() + second.logs()


def test_a_worker_that_stands_still_loses_its_message_to_another(shop, rabbitmq, start_worker):
    """After two to three heartbeats; when it goes on, it finds its place again."""
    fast = {"queues": ["naps"], "env": {"HEARTBEAT": "1"}}
    stopped = start_worker(shop, **fast)
    handle = shop.nap.request(shop.Nap(seconds=1))
    eventually(lambda: marks(shop) == ["nap"])
    stopped.freeze()
    other = start_worker(shop, **fast)
    handle.result(20)
    assert marks(shop) == ["nap"] * 2
    other.stop()
    stopped.thaw()
    shop.nap.request(shop.Nap(seconds=0)).result(20)


def test_who_stood_still_begins_nothing_that_is_another_s_by_now(shop, rabbitmq, start_worker):
    """What was on its way to it is in its socket yet, and was given to another meanwhile."""
    fast = {"queues": ["naps"], "env": {"HEARTBEAT": "1"}}
    stopped = start_worker(shop, **fast)
    stopped.freeze()
    shop.nap.send(shop.Nap(seconds=0))
    eventually(lambda: rabbitmq.counts("naps") == (0, 1))
    start_worker(shop, **fast)
    eventually(lambda: marks(shop) == ["nap"])
    stopped.thaw()
    stopped.wait_for_log("onnection to broker lost")
    stopped.wait_for_log("Connected to")
    shop.nap.request(shop.Nap(seconds=0)).result(20)
    eventually(lambda: rabbitmq.counts("naps") == (0, 0))
    assert marks(shop) == ["nap"] * 2


def test_a_server_that_was_heard_is_not_taken_for_gone(rabbitmq):
    """Also when nobody had the time to read what it said; one that is silent is."""
    with connected(rabbitmq.url, heartbeat=1) as channel:
        connection = channel.connection
        connection.heartbeat_tick()
        heard = connection.last_heartbeat_received
        eventually(lambda: monotonic() > heard + 3)  # three heartbeats of nobody reading
        connection.heartbeat_tick()
        rabbitmq.freeze()
        try:
            with pytest.raises(ConnectionForced):
                eventually(lambda: read(connection) or connection.heartbeat_tick())
        finally:
            rabbitmq.thaw()


def test_a_wait_ends_though_the_server_is_heard(rabbitmq):
    """Its heartbeats come twice a second, and are no event."""
    with connected(rabbitmq.url, heartbeat=1) as channel:
        before = channel.connection.bytes_recv
        with pytest.raises(TimeoutError):
            channel.connection.drain_events(timeout=2)
        assert channel.connection.bytes_recv > before


def test_a_connection_that_is_not_used_stays(shop, rabbitmq):
    """A producer that sends rarely keeps its connection: its heartbeats go out by themselves."""
    shop.app.conf.broker_heartbeat = 1
    shop.say.send(shop.Say())

    [connection] = [one for one in heartbeats._connections if one.virtual_host == rabbitmq.vhost]
    beats = connection.bytes_sent + 8
    accepted = rabbitmq.logs().count("accepting AMQP connection")
    eventually(lambda: connection.bytes_sent >= beats)  # two a second; the server waits for three
    shop.say.send(shop.Say())
    assert rabbitmq.logs().count("accepting AMQP connection") == accepted


def test_a_job_longer_than_the_server_allows_is_refused(shop, rabbitmq, start_worker, monkeypatch):
    """RabbitMQ would take its message back again and again; the error names the setting."""
    done = run_celery(shop, "worker")
    assert done.returncode == 1
    assert "job 'shop.film' has timeout_s=3600" in done.stderr
    assert "consumer_timeout, 1800 s" in done.stderr
    assert "UMBEL_CONSUMER_TIMEOUT_S" in done.stderr
    start_worker(shop, queues=["shop", "naps"])
    monkeypatch.setenv("UMBEL_CONSUMER_TIMEOUT_S", "7200")
    start_worker(shop)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_comes_back_after_the_server_took_its_message(shop, rabbitmq, start_worker, pool):
    """`consumer_timeout` closes its channel; the worker says why, and goes on with a new one.

    A job that is taken back again and again is a run without an outcome each time.
    """
    rabbitmq.control("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    try:
        worker = start_worker(shop, queues=["naps"], pool=pool, concurrency=4)
        handle = shop.nap.request(shop.Nap(seconds=60))
        worker.wait_for_log("PRECONDITION_FAILED - delivery acknowledgement", timeout_s=20)
        with pytest.raises(JobFailed, match="3 workers died in the middle of it"):
            handle.result(30)
    finally:
        rabbitmq.control("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
    assert marks(shop) == ["nap"] * 3
    assert worker.running


def test_a_server_that_was_killed_has_lost_nothing(shop, rabbitmq, start_worker):
    """What was sent before is done after, and the worker finds the server again."""
    start_worker(shop, queues=["naps"])
    sent = [f"{number}" for number in range(20)]
    for text in sent:
        shop.say.send(shop.Say(text=text))
    rabbitmq.kill()
    rabbitmq.restart()
    worker = start_worker(shop, queues=["shop"])
    eventually(lambda: set(marks(shop)) == set(sent), 30)
    assert worker.running


# Runs without an outcome.


def test_runs_without_an_outcome_count_and_what_never_ran_does_not(shop, rabbitmq, start_worker):
    """The third `kill -9` of a whole worker in mid-job is the last; what it only held is done."""
    handle = shop.nap.request(shop.Nap(seconds=60))
    shop.say.send(shop.Say(text="held"))
    for number in range(1, 4):
        worker = start_worker(shop, queues=["naps"])
        eventually(lambda: marks(shop) == ["nap"] * number)  # noqa: B023  called at once
        shop.app.control.add_consumer("shop", destination=[worker.node])
        eventually(lambda: rabbitmq.counts("shop") == (0, 1), 20)
        eventually(lambda: marked(shop) == [number])  # noqa: B023  likewise
        worker.kill()
        worker.close()
    start_worker(shop, queues=["naps", "shop"])
    with pytest.raises(JobFailed, match="3 workers died in the middle of it"):
        handle.result(20)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason) == (Kind.DEAD, Reason.CRASHED)
    eventually(lambda: marks(shop) == ["nap"] * 3 + ["held"])
    eventually(lambda: marked(shop) == [])


def test_a_lost_connection_is_no_fault_of_the_job(shop, rabbitmq, start_worker):
    """Its run is called off and begun anew, and does not count."""
    worker = start_worker(shop, queues=["naps"])
    shop.nap.send(shop.Nap(seconds=60))
    eventually(lambda: marked(shop) == [1])
    rabbitmq.cut_connections()
    worker.wait_for_log("Connection to broker lost")
    eventually(lambda: len(marks(shop)) == 2, 20)
    eventually(lambda: marked(shop) == [1])
    assert worker.running


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_what_is_not_done_in_time_goes_back_uncounted(shop, rabbitmq, start_worker, pool):
    """The end of a worker stops the job, and its message is there for the next."""
    worker = start_worker(shop, queues=["naps"], pool=pool, env={"UMBEL_GRACE_S": "1"})
    shop.nap.send(shop.Nap(seconds=60))
    eventually(lambda: marked(shop) == [1])
    assert worker.stop() == 0
    eventually(lambda: rabbitmq.counts("naps") == (1, 0))
    assert sum(marked(shop)) == 0


def marked(shop: ModuleType) -> list[int]:
    """How often each message that is known to have run without an outcome did."""
    store = shop.app.store.client
    found = (store.get(key) for key in store.keys("shop:begun:*"))
    return [int(runs) for runs in found if runs]  # one may go meanwhile


# Whatever arrives.


class Far(datetime):
    """A time beyond Python's calendar, which AMQP can say."""

    def utctimetuple(self) -> Any:
        return 9999, 12, 400, 0, 0, 0


HOSTILE: dict[str, dict[str, Any]] = {
    "no properties": {"content_type": ""},
    "bytes": {"body": b"\xff\xfe\x00"},
    "an unknown type": {"content_type": "application/x-nothing"},
    "a codec of Python's": {"content_encoding": "rot13"},
    "an encoding that is none": {"content_encoding": "utf-16-le"},
    "a type that is no UTF-8": {"content_type": b"\xff\xfe"},
    "a reply address that is no UTF-8": {"reply_to": b"\xff"},
    "headers of a stranger": {
        "headers": {
            "a": 1,
            "b": [b"\xff", {"c": 2.5}],
        }
    },
    "a time beyond the calendar": {"headers": {"at": Far(1970, 1, 1)}},
    "an id that is a number": {"headers": {"task": "shop.say", "id": 5}},
    "an unknown job": {"headers": {"task": "shop.nope", "id": "x"}},
    "no id": {"headers": {"task": "shop.say"}},
    "no body": {"headers": {"task": "shop.say", "id": "y"}, "body": b""},
    "a body of another form": {"headers": {"task": "shop.say", "id": "z"}, "body": b"[1, 2]"},
    "a deep header": {"headers": {"task": "shop.say", "id": "deep"}},
}


def test_whatever_arrives_is_kept_and_the_worker_goes_on(shop, rabbitmq, start_worker):
    """What py-amqp cannot read included: its bytes are in quarantine, and the next job runs."""
    worker = start_worker(shop, queues=["shop"])
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    HOSTILE["a deep header"]["headers"]["deep"] = deep
    for number, properties in enumerate(HOSTILE.values()):
        body = properties.get("body", b"hostile %d" % number)
        rest = {name: value for name, value in properties.items() if name != "body"}
        rabbitmq.push("shop", body, **rest)
    assert shop.say.request(shop.Say(text="good")).result(20) == "good"
    letters = list(shop.app.dead_letters.newest(100))
    assert len(letters) == len(HOSTILE)
    assert {letter.kind for letter in letters} == {Kind.QUARANTINE}
    bodies = {letter.body for letter in letters}
    expected = {one.get("body", b"hostile %d" % at) for at, one in enumerate(HOSTILE.values())}
    assert bodies == expected
    assert "Unrecoverable error" not in worker.logs()
    assert "onnection to broker lost" not in worker.logs()
    assert marks(shop) == ["good"]
