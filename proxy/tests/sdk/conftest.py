"""A client of the gateway that is registered on disk, as a user of the SDK has it."""

import itertools
import os

import pytest
from openshell import SandboxClient

WORKSPACE = "default"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def client():
    with SandboxClient.from_active_cluster() as found:
        yield found


@pytest.fixture
def new_name():
    return lambda: f"sdk-{os.getpid() % 100000}-{next(_numbers)}"


@pytest.fixture
def sandbox(client, new_name):
    """A ready sandbox, removed afterwards."""
    name = new_name()
    client.create(workspace=WORKSPACE, name=name)
    yield client.wait_ready(name, workspace=WORKSPACE, timeout_seconds=60)
    client.delete(name, workspace=WORKSPACE, allow_missing=True)


@pytest.fixture
def python_sandbox(client, sandbox):
    """A sandbox whose `python` finds cloudpickle, as an image for exec_python has it.

    Commands run in a login shell, and /etc/profile sets PATH anew; ~/.profile is read after it.
    """
    script = f"echo 'PATH={os.environ['SDK_PYTHON_BIN']}:$PATH' > ~/.profile"
    assert client.exec(sandbox.name, ["sh", "-c", script], workspace=WORKSPACE).exit_code == 0
    return sandbox
