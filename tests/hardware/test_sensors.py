"""One reading at a time, whoever asks; a sensor that fails or hangs takes nothing else down."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from appliance.hardware import sensors
from appliance.hardware.sensors import Sensors
from appliance.hardware.telemetry import Reading

READINGS = [Reading(device="gpu0", name="a GPU", temperature_celsius=50.0)]


def run(through):
    return asyncio.run(asyncio.wait_for(through, 30))


def test_driver_that_hangs_keeps_one_thread_and_nobody_waiting(monkeypatch, caplog):
    monkeypatch.setattr(sensors, "ANSWER_SECONDS", 0.1)
    driver, asked = threading.Event(), []

    def read():
        asked.append(threading.get_ident())
        driver.wait()
        return READINGS

    async def through():
        tested = Sensors(read)
        assert await asyncio.gather(*(tested.now() for _ in range(5))) == [[]] * 5
        assert await tested.now() == []
        assert len(asked) == 1
        driver.set()
        while await tested.now() != READINGS:
            await asyncio.sleep(0.01)

    run(through())
    assert [each.message for each in caplog.records] == ["telemetry cannot be read"]


def test_driver_that_hangs_for_ever_does_not_keep_the_process(tmp_path):
    code = (
        "import asyncio, threading\n"
        "from appliance.hardware import sensors\n"
        "sensors.ANSWER_SECONDS = 0.1\n"
        "print(asyncio.run(sensors.Sensors(threading.Event().wait).now()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_thread_that_cannot_be_started_is_a_sensor_that_fails(monkeypatch, caplog):
    def cannot(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", cannot)
    tested = Sensors(lambda: READINGS)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(tested.now()) == []
    loop.close()
    assert [each.message for each in caplog.records] == ["telemetry cannot be read"]


def test_each_question_after_an_answer_is_asked_anew():
    async def through():
        told = iter(([], READINGS))
        tested = Sensors(lambda: next(told))
        return [await tested.now(), await tested.now()]

    assert run(through()) == [[], READINGS]


def test_sensor_that_fails_is_logged_once_until_it_works(caplog):
    async def through():
        answers = iter((ValueError("broken"), ValueError("broken"), READINGS, ValueError("again")))

        def read():
            if isinstance(answer := next(answers), Exception):
                raise answer
            return answer

        tested = Sensors(read)
        return [await tested.now() for _ in range(4)]

    assert run(through()) == [[], [], READINGS, []]
    assert [each.message for each in caplog.records] == ["telemetry cannot be read"] * 2
    assert "broken" in caplog.text


def test_who_gives_up_takes_no_answer_from_others():
    driver = threading.Event()

    async def through():
        tested = Sensors(lambda: driver.wait() and READINGS)
        one, other = (asyncio.create_task(tested.now()) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        await asyncio.wait({one})
        driver.set()
        assert one.cancelled()
        return await other

    assert run(through()) == READINGS


def test_who_is_cancelled_in_the_moment_of_the_answer_is_cancelled():
    """Else a job that is cancelled then would go on."""

    async def through(turns: int) -> bool:
        release = threading.Event()
        tested = Sensors(lambda: release.wait() and READINGS)
        asking = asyncio.create_task(tested.now())
        while tested._reading is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        tested._reading.set_result(READINGS)
        for _ in range(turns):
            await asyncio.sleep(0)
        in_time = asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled() == in_time
        return in_time

    cancelled = [run(through(turns)) for turns in range(6)]
    # From before the answer is passed on to after it has been.
    assert cancelled[0] and not cancelled[-1]
