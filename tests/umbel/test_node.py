"""Programs in another language, without a line of ours: Node.js with its own clients."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import pytest
from support.npm import installed
from support.process import LocalProcess, eventually
from support.servers import RabbitMQ

ROOT = Path(__file__).parents[2]
NODE = ROOT / "examples" / "node"
APP = """
from pathlib import Path
from umbel import Event, Message, Umbel

app = Umbel("shop")
GREETED = Path(__file__).parent / "greeted"

class Greet(Message, name="shop.greet", version=1):
    who: str

class Greeted(Event, name="shop.greeted", version=1):
    who: str

@app.job(queue="greetings")
def greet(message: Greet) -> str:
    with GREETED.open("a") as file:
        file.write(message.who + "\\n")
    app.publish(Greeted(who=message.who))
    return f"Hello, {message.who}!"
"""


@pytest.fixture
def start_node(app_dir, broker):
    """Factory `start_node(program) -> LocalProcess`, ready once it has sent."""
    packages = installed(NODE)
    shutil.copytree(packages / "node_modules", app_dir / "node_modules", symlinks=True)
    with closing(
        LocalProcess(name="node", command=["node"], cwd=app_dir, ready="sent\n")
    ) as process:

        def start(program: str) -> LocalProcess:
            shutil.copy(NODE / program, app_dir)
            process.command = ["node", program, broker.url, "shop"]
            return process.start()

        yield start


@pytest.mark.brokers("valkey", "rabbitmq")
def test_a_program_in_node_sends_work_and_reads_events(write_app, start_worker, start_node, broker):
    """JSON, XML and CloudEvents are done; what the job publishes arrives; the results are there."""
    shop = write_app(APP)
    start_worker(shop)
    shop.app.publish(shop.Greeted(who="nobody"))  # declares the exchange
    on_rabbitmq = isinstance(broker, RabbitMQ)
    node = start_node("rabbitmq.mjs" if on_rabbitmq else "valkey.mjs")
    who = ["JSON", "XML", "CloudEvents", *(["binary mode", "messageId"] if on_rabbitmq else [])]
    eventually(lambda: shop.GREETED.exists() and shop.GREETED.read_text().count("\n") == len(who))
    assert sorted(shop.GREETED.read_text().splitlines()) == sorted(who)
    for name in who:
        node.wait_for_log(f'event shop.greeted {{"who":"{name}"}}\n')
    ids = {"1": "CloudEvents"} | ({"2": "binary mode"} if on_rabbitmq else {})
    for event_id, name in ids.items():
        job_id = str(uuid5(NAMESPACE_OID, f"urn:example:node {event_id}"))
        assert shop.app.handle(job_id).result(10) == f"Hello, {name}!"
    if on_rabbitmq:
        assert shop.app.handle("node-1").result(10) == "Hello, messageId!"
    assert shop.app.dead_letters.count() == 0
    assert node.stop() == 0


def test_the_programs_are_in_the_documentation():
    """As they are."""
    page = (ROOT / "docs" / "wire-format.md").read_text()
    assert re.findall(r"```javascript\n(.*?)```", page, re.DOTALL) == [
        (NODE / program).read_text() for program in ("rabbitmq.mjs", "valkey.mjs")
    ]
