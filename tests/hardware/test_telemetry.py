"""What a device says of itself at the moment; zeros of a library that only pretends are no measurements."""

from __future__ import annotations

import pytest

from tests.hardware import replay

HOST = {"machine": "aarch64", "mem_total_kb": 8 << 20, "mem_available_kb": 6 << 20}
GPU = {
    "name": "NVIDIA L4",
    "memory_total": 23034 << 20,
    "memory_used": 3 << 30,
    "compute_capability": "8.9",
    "temperature": 71,
    "power_mw": 68500,
    "utilization": 97,
    "sm_clock_mhz": 1590,
    "throttle_reasons": 0,
}


def now(tmp_path, *gpus, files=()):
    """The readings of a device with these GPUs and files."""
    recorded = {"nvml": {"driver": "1", "cuda": 13000, "gpu": gpus}, "host": HOST}
    if not gpus:
        del recorded["nvml"]
    for name, text in dict(files).items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    return replay.profile(recorded, tmp_path)["now"]


def test_everything_that_a_gpu_says_is_read(tmp_path):
    assert now(tmp_path, GPU) == [
        {
            "device": "gpu0",
            "name": "NVIDIA L4",
            "utilization_percent": 97.0,
            "memory_used_bytes": 3 << 30,
            "temperature_celsius": 71.0,
            "power_watts": 68.5,
            "sm_clock_mhz": 1590,
            "throttled_by": [],
        }
    ]


def test_gpus_of_one_name_are_told_apart(tmp_path):
    readings = now(tmp_path, GPU, {**GPU, "temperature": 50})
    told = [(each["device"], each["temperature_celsius"]) for each in readings]
    assert told == [("gpu0", 71.0), ("gpu1", 50.0)]


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (0x1 | 0x2, []),
        (0x4, ["power limit"]),
        (0x20 | 0x40, ["heat", "heat, by hardware"]),
        (0x88, ["hardware slowdown", "power brake"]),
    ],
)
def test_reasons_for_being_slow_are_named(tmp_path, reasons, expected):
    (reading,) = now(tmp_path, {**GPU, "throttle_reasons": reasons})
    assert reading["throttled_by"] == expected


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "!4", "!15", "!999"])
def test_what_cannot_be_read_is_none_and_the_rest_still_counts(tmp_path, error):
    (reading,) = now(tmp_path, {**GPU, "power_mw": error, "throttle_reasons": error})
    assert (reading["power_watts"], reading["throttled_by"]) == (None, None)
    assert reading["temperature_celsius"] == 71.0


def test_library_that_answers_zeros_has_measured_nothing(tmp_path):
    zeros = {**GPU, "temperature": 0, "power_mw": 0, "utilization": 0, "memory_total": 0}
    (reading,) = now(tmp_path, zeros)
    assert set(map(str, reading.values())) == {"gpu0", "NVIDIA L4", "None"}


def test_memory_that_is_the_hosts_is_not_the_gpus(tmp_path):
    (reading,) = now(tmp_path, {**GPU, "memory_total": 0, "memory_used": 5})
    assert reading["memory_used_bytes"] is None


SENSOR = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
JETSON = {
    "sys/devices/platform/gpu.0/load": "873\n",
    "sys/devices/virtual/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone0/temp": "51000\n",
    "sys/devices/virtual/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone1/temp": "57250\n",
    f"{SENSOR}/in1_label": "VDD_IN\n",
    f"{SENSOR}/in1_input": "5000\n",
    f"{SENSOR}/curr1_input": "1500\n",
    f"{SENSOR}/in2_label": "NC\n",
    f"{SENSOR}/in2_input": "9000\n",
    f"{SENSOR}/curr2_input": "9000\n",
}


def test_jetson_is_read_from_its_files(tmp_path):
    (reading,) = now(tmp_path, files=JETSON)
    assert (reading["device"], reading["name"]) == ("board", "board")
    assert reading["utilization_percent"] == 87.3
    assert reading["temperature_celsius"] == 57.25
    assert reading["power_watts"] == 7.5


@pytest.mark.parametrize(("missing", "watts"), [(None, 21.0), ("VIN_SYS_5V0", None)])
def test_board_without_one_rail_for_all_takes_the_sum_of_its_own(tmp_path, missing, watts):
    files = {"sys/devices/platform/gpu.0/load": "1\n"}
    rails = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    for number, rail in enumerate(rails, start=1):
        if rail != missing:
            files |= {
                f"{SENSOR}/in{number}_label": f"{rail}\n",
                f"{SENSOR}/in{number}_input": "5000\n",
                f"{SENSOR}/curr{number}_input": "1400\n",
            }
    (reading,) = now(tmp_path, files=files)
    assert reading["power_watts"] == watts


def test_junction_temperature_counts_where_it_is_given(tmp_path):
    hotter = {
        "sys/devices/virtual/thermal/thermal_zone8/type": "tj-thermal\n",
        "sys/devices/virtual/thermal/thermal_zone8/temp": "63000\n",
    }
    (reading,) = now(tmp_path, files={**JETSON, **hotter})
    assert reading["temperature_celsius"] == 63.0


@pytest.mark.parametrize("place", ["17000000.gpu", "bus@0/17000000.gpu"])
def test_load_is_found_where_later_jetpacks_have_it(tmp_path, place):
    files = {f"sys/devices/platform/{place}/load": "12\n"}
    (reading,) = now(tmp_path, files=files)
    assert (reading["utilization_percent"], reading["power_watts"]) == (1.2, None)


def test_plain_cpu_has_nothing_to_say(tmp_path):
    zone = "sys/devices/virtual/thermal/thermal_zone0"
    assert now(tmp_path, files={f"{zone}/type": "x86_pkg_temp", f"{zone}/temp": "40000"}) == []


@pytest.mark.parametrize("path", replay.DEVICES, ids=lambda path: path.stem)
def test_every_recorded_device_says_what_its_record_says(path):
    recorded = replay.read(path)
    readings = replay.profile_of_recorded(path)["now"]
    gpus = recorded.get("nvml", {}).get("gpu", [])
    assert len(readings) == len(gpus)
    for gpu, reading in zip(gpus, readings, strict=True):
        celsius = gpu["temperature"]
        expected = float(celsius) if celsius not in ("NOT_SUPPORTED", 0) else None
        assert reading["temperature_celsius"] == expected


def test_temperature_that_no_chip_has_is_none(tmp_path):
    # Below zero, taken for a number without a sign.
    (reading,) = now(tmp_path, {**GPU, "temperature": (1 << 32) - 5})
    assert reading["temperature_celsius"] is None
    assert reading["power_watts"] == 68.5
