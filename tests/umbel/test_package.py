"""The package as it is installed: lazy, quiet, and nobody else's names."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import umbel

ROOT = Path(__file__).parents[2]


def test_all_that_is_promised_is_there():
    """`__all__` and what can be imported are the same, and each name is the class of that name."""
    assert sorted(umbel.__all__) == umbel.__all__
    for name in umbel.__all__:
        assert getattr(umbel, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = umbel.Nope


def test_importing_it_loads_nothing():
    """The root is lazy: neither Celery nor Pydantic before a name is used."""
    program = "import sys, umbel; print(sorted({'celery', 'pydantic', 'redis'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_media_app_imports_nothing_heavy():
    """A worker forks after its import: libvips and the model's runtime must not be there yet."""
    program = (
        "import sys, umbel.media\n"
        "heavy = {'pyvips', 'magika', 'onnxruntime', 'av', 'obstore', 'fastapi', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("folder", ["config", "routing", "jobs", "producers", "consumers"])
def test_a_folder_under_its_bare_name_is_refused(folder):
    """`celery -A` puts the working directory on the path; a second copy would equal nothing."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"import it as 'umbel.{folder}'" in done.stderr


@pytest.mark.parametrize("module", ["umbel.jobs.addresses", "umbel.jobs.retry", "umbel.jobs.wire"])
def test_examples_in_docstrings_run(module):
    """They are part of the documentation."""
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.timeout(400)  # installs from a registry
def test_the_wheel_works_in_an_empty_environment(tmp_path):
    """Built, installed elsewhere: ten lines, a worker, a typed result, no broker configured.

    And it brings no common top-level names.
    """
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    environment, python = tmp_path / "env", tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, capture_output=True)
    brought = subprocess.run(
        [python, "-c", "import umbel, pathlib; print(pathlib.Path(umbel.__file__).parents[1])"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout.strip()
    names = {path.name for path in Path(brought).iterdir()}
    assert not names & {"jobs", "config", "routing", "producers", "consumers", "tests"}
    assert (Path(brought) / "umbel" / "py.typed").is_file()

    shop = tmp_path / "shop"
    shop.mkdir()
    readme = (ROOT / "README.md").read_text()
    code = readme.partition("```python\n# shop.py\n")[2].partition("```")[0]
    (shop / "shop.py").write_text(code)
    celery = [environment / "bin" / "celery", "-A", "shop", "worker", "-c", "1"]
    with (shop / "log").open("w") as log:
        worker = subprocess.Popen(celery, cwd=shop, stdout=log, stderr=subprocess.STDOUT)
    try:
        ask = "import shop; print(shop.greet.request(shop.Greet(who='you')).result(30))"
        done = subprocess.run([python, "-c", ask], cwd=shop, capture_output=True, text=True)
        assert done.stdout == "Hello, you!\n", done.stderr + (shop / "log").read_text()
    finally:
        worker.kill()
        worker.wait()
