"""The Python SDK from PyPI, unchanged, against a gateway started with `postern up`."""

import time

import grpc
import pytest
from conftest import WORKSPACE
from openshell import Sandbox
from openshell._proto import openshell_pb2
from openshell.mutations import DeletionOutcome
from openshell.sandbox import ExecChunk, ExecResult

READY = openshell_pb2.SANDBOX_PHASE_READY
STOPPED = openshell_pb2.SANDBOX_PHASE_STOPPED


def run(client, sandbox, *command, **options):
    return client.exec(sandbox.name, list(command), workspace=WORKSPACE, **options)


def test_health(client):
    answer = client.health()
    assert answer.status == openshell_pb2.SERVICE_STATUS_HEALTHY
    assert answer.version


def test_create_and_wait_ready(client, sandbox):
    assert sandbox.status.phase == READY
    assert sandbox.id and sandbox.workspace == WORKSPACE
    ready = [c for c in sandbox.conditions if c.type == "Ready"]
    assert [c.status for c in ready] == ["True"]
    assert sandbox.host_key_fingerprint.startswith("SHA256:")


def test_a_name_is_made_up_when_none_is_given(client):
    made = client.create(workspace=WORKSPACE)
    try:
        assert made.name
        assert client.get(made.name, workspace=WORKSPACE).id == made.id
    finally:
        client.delete(made.name, workspace=WORKSPACE)


def test_a_taken_name_is_already_exists(client, sandbox):
    with pytest.raises(grpc.RpcError) as caught:
        client.create(workspace=WORKSPACE, name=sandbox.name)
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.error_info.reason


def test_exec_before_ready_waits_and_succeeds(client, new_name):
    name = new_name()
    client.create(workspace=WORKSPACE, name=name)
    try:
        result = client.exec(name, ["echo", "early"], workspace=WORKSPACE)
        assert (result.exit_code, result.stdout) == (0, "early\n")
    finally:
        client.delete(name, workspace=WORKSPACE)


def test_exec_stdout_stderr_and_exit_code(client, sandbox):
    result = run(client, sandbox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_exec_arguments_arrive_unchanged(client, sandbox):
    odd = ["a b", "it's", '"', "$HOME", "", "*", "é\n"]
    result = run(client, sandbox, "printf", "[%s]", *odd)
    assert result.stdout == "".join(f"[{text}]" for text in odd)


def test_exec_death_by_a_signal_is_128_and_its_number(client, sandbox):
    assert run(client, sandbox, "sh", "-c", "kill -KILL $$").exit_code == 137


def test_exec_stdin(client, sandbox):
    data = bytes(range(256)) * 1024
    result = run(client, sandbox, "sha256sum", stdin=data)
    import hashlib

    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_exec_env_and_workdir(client, sandbox):
    result = run(
        client, sandbox, "sh", "-c", 'echo "$GREETING" in $(pwd)', env={"GREETING": "it's $me"}, workdir="/usr/bin"
    )
    assert result.stdout == "it's $me in /usr/bin\n"


def test_exec_timeout_is_124_and_ends_the_whole_tree(client, sandbox):
    script = "(setsid sleep 4321 &) ; (sleep 4321 &) ; sleep 4321"
    result = run(client, sandbox, "sh", "-c", script, timeout_seconds=1)
    assert result.exit_code == 124
    left = run(client, sandbox, "sh", "-c", "ps -eo args | grep '[s]leep 4321' | wc -l")
    assert left.stdout.strip() == "0"


def test_exec_of_what_is_not_there_is_127(client, sandbox):
    assert run(client, sandbox, "no-such-program").exit_code == 127


def test_exec_python(client, python_sandbox):
    factor = 6
    result = client.exec_python(
        python_sandbox.name,
        lambda x, plus=0: x * factor + plus,
        workspace=WORKSPACE,
        args=(7,),
        kwargs={"plus": 1},
    )
    assert (result.exit_code, result.stdout) == (0, "43\n"), result.stderr


def test_exec_stream_arrives_as_it_is_written(client, sandbox):
    # The second line is written only after the file that we make on seeing the first one.
    script = "echo first; until [ -e go ]; do sleep 0.05; done; echo second"
    seen = []
    for item in client.exec_stream(sandbox.name, ["sh", "-c", script], workspace=WORKSPACE, timeout_seconds=30):
        if isinstance(item, ExecChunk):
            seen.append(item.data)
            if len(seen) == 1:
                run(client, sandbox, "touch", "go")
        else:
            assert isinstance(item, ExecResult) and item.exit_code == 0
    assert b"".join(seen) == b"first\nsecond\n"


def test_exec_of_much_output(client, sandbox):
    result = run(client, sandbox, "sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x")
    assert len(result.stdout) == 20_000_000


def test_list_pages_and_labels(client, new_name):
    names = [new_name() for _ in range(5)]
    mark = names[0]
    for index, name in enumerate(names):
        client.create(
            workspace=WORKSPACE, name=name, labels={"run": mark, "half": "even" if index % 2 == 0 else "odd"}
        )
    try:
        pages = list(client.list(workspace=WORKSPACE, page_size=2, label_selector=f"run={mark}"))
        assert [len(page.items) for page in pages] == [2, 2, 1]
        assert sorted(item.name for page in pages for item in page.items) == sorted(names)
        even = client.list_all(workspace=WORKSPACE, label_selector=f"run={mark},half=even")
        assert sorted(item.name for item in even) == sorted(names[::2])
        assert all(item.labels["half"] == "even" for item in even)
        everywhere = client.list_all_for_all_workspaces(label_selector=f"run={mark}")
        assert len(everywhere) == 5
        assert sorted(client.list_ids(workspace=WORKSPACE, label_selector=f"run={mark}")) == sorted(
            item.id for item in everywhere
        )
    finally:
        for name in names:
            client.delete(name, workspace=WORKSPACE, allow_missing=True)


def test_stop_keeps_files_and_start_brings_them_back(client, sandbox):
    run(client, sandbox, "sh", "-c", "echo kept > ~/note")
    client.stop(sandbox.name, workspace=WORKSPACE)
    assert client.wait_stopped(sandbox.name, workspace=WORKSPACE, timeout_seconds=30).status.phase == STOPPED
    with pytest.raises(grpc.RpcError) as caught:
        run(client, sandbox, "true")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    client.start(sandbox.name, workspace=WORKSPACE)
    client.wait_ready(sandbox.name, workspace=WORKSPACE, timeout_seconds=30)
    assert run(client, sandbox, "sh", "-c", "cat ~/note").stdout == "kept\n"


def test_delete_and_wait_deleted(client, new_name):
    name = new_name()
    made = client.create(workspace=WORKSPACE, name=name)
    result = client.delete(name, workspace=WORKSPACE)
    assert result.outcome in (DeletionOutcome.COMPLETED, DeletionOutcome.ACCEPTED)
    assert result.sandbox_id == made.id
    client.wait_deleted(name, workspace=WORKSPACE, timeout_seconds=30)
    with pytest.raises(grpc.RpcError) as caught:
        client.get(name, workspace=WORKSPACE)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    again = client.delete(name, workspace=WORKSPACE, allow_missing=True)
    assert again.outcome == DeletionOutcome.ALREADY_ABSENT
    with pytest.raises(grpc.RpcError) as caught:
        client.delete(name, workspace=WORKSPACE)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def wait_phase(client, name, *phases):
    deadline = time.monotonic() + 60
    while (found := client.get(name, workspace=WORKSPACE)).status.phase not in phases:
        assert time.monotonic() < deadline, f"still {found.status}"
        time.sleep(0.1)
    return found


def test_a_main_process_that_ends_well_completes_the_sandbox(client, new_name):
    name = new_name()
    client.create(workspace=WORKSPACE, name=name, spec=openshell_pb2.SandboxSpec(command=["true"]))
    try:
        found = wait_phase(client, name, openshell_pb2.SANDBOX_PHASE_COMPLETED)
        assert found.status.exit_code == 0
        time.sleep(2)  # what the driver sees afterwards must not change it
        assert client.get(name, workspace=WORKSPACE).status.phase == openshell_pb2.SANDBOX_PHASE_COMPLETED
    finally:
        client.delete(name, workspace=WORKSPACE)


def test_a_main_process_that_fails_is_an_error_that_start_recovers(client, new_name):
    name = new_name()
    command = ["sh", "-c", "test -e ~/again && exec sleep 1000; touch ~/again; exit 3"]
    client.create(workspace=WORKSPACE, name=name, spec=openshell_pb2.SandboxSpec(command=command))
    try:
        found = wait_phase(client, name, openshell_pb2.SANDBOX_PHASE_ERROR)
        assert found.status.exit_code == 3
        client.start(name, workspace=WORKSPACE)
        client.wait_ready(name, workspace=WORKSPACE, timeout_seconds=30)
        assert client.exec(name, ["true"], workspace=WORKSPACE).exit_code == 0
    finally:
        client.delete(name, workspace=WORKSPACE)


def test_session(client, new_name):
    session = client.create_session(workspace=WORKSPACE, name=new_name())
    try:
        client.wait_ready(session.sandbox.name, workspace=WORKSPACE, timeout_seconds=60)
        assert session.exec(["echo", "hi"]).stdout == "hi\n"
        again = client.get_session(session.sandbox.name, workspace=WORKSPACE)
        assert again.id == session.id
        again.stop()
        client.wait_stopped(session.sandbox.name, workspace=WORKSPACE, timeout_seconds=30)
        again.start()
        client.wait_ready(session.sandbox.name, workspace=WORKSPACE, timeout_seconds=30)
    finally:
        session.delete()


def test_sandbox_as_a_context():
    with Sandbox(workspace=WORKSPACE, ready_timeout_seconds=60) as sandbox:
        assert sandbox.exec(["id", "-u"]).stdout.strip() != "0"
        name = sandbox.sandbox.name
    from openshell import SandboxClient

    with SandboxClient.from_active_cluster() as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.get(name, workspace=WORKSPACE)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_cancelling_the_call_ends_a_silent_command(client, sandbox):
    stream = client.exec_stream(
        sandbox.name, ["sh", "-c", "echo started; exec sleep 9876"], workspace=WORKSPACE, timeout_seconds=60
    )
    assert next(stream).data == b"started\n"
    stream.close()
    deadline = time.monotonic() + 10
    while run(client, sandbox, "sh", "-c", "ps -eo args | grep '[s]leep 9876' | wc -l").stdout.strip() != "0":
        assert time.monotonic() < deadline, "the command outlived its call"


def test_what_is_not_there_is_not_found(client):
    for call in (
        lambda: client.get("nothing", workspace=WORKSPACE),
        lambda: client.stop("nothing", workspace=WORKSPACE),
        lambda: client.exec("nothing", ["true"], workspace=WORKSPACE),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_what_is_not_built_names_itself(client):
    with pytest.raises(grpc.RpcError) as caught:
        client.sandbox_templates().get("nothing", workspace=WORKSPACE)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "GetSandboxTemplate" in caught.value.details()
