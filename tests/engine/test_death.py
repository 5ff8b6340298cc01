"""However an engine ends, nobody waits for it in vain, and it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import process
from appliance.engine import client, protocol
from appliance.engine.protocol import Generate, Loaded
from appliance.errors import ApplianceError, ChildFailed
from tests.engine.asking import ENDLESS, GREEDY, ask, running, user

pytestmark = pytest.mark.llama

# What the README promises of children whose daemon has died.
GONE_SECONDS = 5.0


async def start_by_hand(gguf: Path) -> tuple[process.Child, socket.socket]:
    """An engine and the bare connection to it, once it is loaded."""
    ours, theirs = socket.socketpair()
    with theirs:
        options = ["--n-ctx=8192", "--threads=1", "--slots=4", f"--socket-fd={theirs.fileno()}"]
        argv = process.python_child("appliance.engine", str(gguf), *options)
        child = await process.start("engine", argv, pass_fds=(theirs.fileno(),))
    stream = ours.makefile("rb")
    loaded = False
    while not loaded:
        body = stream.read(protocol.body_length(stream.read(protocol.HEADER_BYTES)))
        loaded = isinstance(protocol.decode_reply(body), Loaded)
    stream.close()
    return child, ours


async def is_gone_within(seconds: float, child: process.Child) -> int:
    async with asyncio.timeout(seconds):
        while child.returncode is None:
            await asyncio.sleep(0.01)
    return await child.wait()


def test_a_killed_engine_fails_every_pending_request(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=8192) as engine:
            asked = [asyncio.create_task(ask(engine, ENDLESS)) for _ in range(3)]
            await asyncio.sleep(0.3)
            assert engine.pending == 3
            os.kill(engine.pid, signal.SIGKILL)
            async with asyncio.timeout(5):
                ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [getattr(end, "code", end) for end in ends] == ["engine_died"] * 3
            assert "SIGKILL" in str(ends[0])
            assert not engine.alive
            assert engine.pending == 0
            with pytest.raises(ChildFailed) as caught:
                await ask(engine, "Is anybody there?")
            assert caught.value.code == "engine_died"

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 200_000])
def test_a_stopped_engine_is_noticed_and_ended(starter_gguf: Path, times: int) -> None:
    async def run() -> None:
        async with running(starter_gguf, stall_seconds=5) as engine:
            os.kill(engine.pid, signal.SIGSTOP)
            with pytest.raises(ChildFailed) as caught:
                # The larger one fills what lies between two processes.
                await ask(engine, "Is anybody there? " * times)
            assert caught.value.code == "engine_stalled"
            assert not engine.alive

    asyncio.run(run())


def test_all_who_wait_for_a_stopped_engine_are_told(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, stall_seconds=3) as engine:
            asked = [asyncio.create_task(ask(engine, ENDLESS)) for _ in range(3)]
            await asyncio.sleep(0.5)
            os.kill(engine.pid, signal.SIGSTOP)
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [getattr(end, "code", end) for end in ends] == ["engine_stalled"] * 3
            assert engine.pending == 0

    asyncio.run(run())


def test_engine_that_nobody_asks_may_be_silent(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, stall_seconds=1) as engine:
            for _ in range(2):
                await asyncio.sleep(1.5)
                assert engine.alive
                await ask(engine, "Say hello.", max_tokens=4)

    asyncio.run(run())


def test_stopping_ends_a_busy_engine_and_says_so_to_who_waits(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=8192) as engine:
            asked = asyncio.create_task(ask(engine, ENDLESS))
            await asyncio.sleep(0.3)
            assert engine.alive
            # Less than the grace after which it would be killed.
            async with asyncio.timeout(process.TERMINATE_GRACE_SECONDS):
                await engine.stop()
            assert not engine.alive
            with pytest.raises(ChildFailed) as caught:
                await asked
            assert caught.value.code == "engine_stopped"

    asyncio.run(run())


def test_the_end_of_the_connection_ends_a_busy_engine(starter_gguf: Path) -> None:
    async def run() -> None:
        child, connection = await start_by_hand(starter_gguf)
        request = Generate(id=1, prompt=user(ENDLESS), sampling=GREEDY)
        connection.sendall(protocol.encode(request))
        await asyncio.sleep(0.5)
        connection.close()
        assert await is_gone_within(GONE_SECONDS, child) == 0

    asyncio.run(run())


def test_an_engine_refuses_a_frame_over_the_cap(starter_gguf: Path) -> None:
    async def run() -> None:
        child, connection = await start_by_hand(starter_gguf)
        with connection:
            connection.sendall(b"\xff\xff\xff\xff")
            assert await is_gone_within(GONE_SECONDS, child) == 1
        assert str(2**32 - 1) in child.describe_death()

    asyncio.run(run())


PARENT = """
import asyncio, sys
from pathlib import Path
from appliance.engine import client

async def main():
    engine = await client.start("engine", Path(sys.argv[1]), n_ctx=256, threads=1, slots=4)
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_an_engine_dies_with_its_parent(starter_gguf: Path, stopped: bool) -> None:
    """A stopped one too, which no longer sees the connection end."""
    argv = [sys.executable, "-c", PARENT, str(starter_gguf)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        status = Path("/proc", str(pid), "status")
        assert "appliance" in status.with_name("cmdline").read_text()
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 5
    while status.exists() and "\nState:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def failure_to_start(gguf: Path, **options: float) -> ApplianceError:
    with pytest.raises(ChildFailed) as caught:
        await client.start("engine", gguf, n_ctx=256, threads=1, slots=4, **options)
    return caught.value


def test_a_model_without_a_chat_template_is_not_loaded(starter_gguf: Path, tmp_path: Path) -> None:
    data = starter_gguf.read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    error = asyncio.run(failure_to_start(bare))
    assert error.code == "no_chat_template"
    assert "bare.gguf" in error.message


def test_a_broken_file_is_refused_in_the_words_of_llama_cpp(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model")
    error = asyncio.run(failure_to_start(broken))
    assert error.code == "unloadable_model"
    assert "broken.gguf" in error.message
    assert "no reason given" not in error.message


def test_a_cut_file_is_refused(starter_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(starter_gguf.read_bytes()[: 20 << 20])
    assert asyncio.run(failure_to_start(cut)).code == "unloadable_model"


def test_a_load_without_progress_is_given_up(starter_gguf: Path) -> None:
    error = asyncio.run(failure_to_start(starter_gguf, stall_seconds=0.05))
    assert error.code == "engine_stalled"
