"""A real PostgreSQL on a private loopback port: one for many tests, a database for each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from support.process import LocalProcess
from support.servers import claim_port

# It refuses to be root; it dies with pytest, as other servers do.
_USER = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"] if os.getuid() == 0 else []
_AS_USER = ["setpriv", *_USER, "--pdeathsig", "KILL"]
_numbers = count(1)


class Postgres(LocalProcess):
    """A server that trusts whoever reaches its port, which is on the loopback only."""

    def __init__(self, directory: Path) -> None:
        self.port = claim_port()
        data = directory / "data"
        init = [*_AS_USER, _binary("initdb"), "-D", data, "-U", "umbel", "-A", "trust", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=directory)
        super().__init__(
            name="postgres",
            command=[
                *_AS_USER,
                *(_binary("postgres"), "-D", data, "-p", str(self.port), "-h", "127.0.0.1"),
                *("-k", "", "-F", "-c", "max_connections=40"),
            ],
            cwd=directory,
            ready="database system is ready to accept connections",
        )

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy's."""
        return f"postgresql+psycopg://umbel@127.0.0.1:{self.port}/{database}"

    def terminate(self) -> None:
        """Its fast shutdown: at SIGTERM it would wait for its clients."""
        self.signal(signal.SIGINT)

    def close(self) -> None:
        """Its children are sessions of their own, and go with it."""
        if self.running:
            self.terminate()
            self.wait()
        super().close()


def _binary(name: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) or [shutil.which(name)]
    if found[-1] is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    return Path(found[-1])


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    """The server that all tests of this process share."""
    with tempfile.TemporaryDirectory(prefix="umbel-postgres-") as directory:
        if os.getuid() == 0:
            shutil.chown(directory, "nobody", "nogroup")
        with closing(Postgres(Path(directory))) as server:
            yield server.start()


@pytest.fixture
def postgres(_postgres: Postgres) -> Postgres:
    """It may be killed and started again."""
    return _postgres


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """A database of the test's own."""
    import sqlalchemy

    name = f"test_{next(_numbers)}"
    engine = sqlalchemy.create_engine(postgres.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres.url(name)
