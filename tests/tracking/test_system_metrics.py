"""The machine is sampled during the training, under MLflow's own names; a sensor that fails is skipped."""

import sys
import types

from tracking_servers import history, tracker

from foundry.tracking.settings import connect
from foundry.tracking.spool import Spool
from foundry.tracking.system import SystemMetrics

MINE = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_memory_usage_megabytes",
    "system/disk_available_megabytes",
}


def sampled(folder, samples=3):
    """Runs a sampler for at least so many samples; returns the points by metric."""
    spool = Spool(folder)
    sampler = SystemMetrics(spool, folder, period=0.02)
    before = spool.next_step("system/cpu_utilization_percentage")
    sampler.start()
    while spool.next_step("system/cpu_utilization_percentage") < before + samples:
        assert sampler.is_alive()
    sampler.stop()
    assert not sampler.is_alive()
    spool.close()
    points = {}
    for key, value, _, step in spool.pending(10**6).points:
        points.setdefault(key, []).append((step, value))
    return points


def test_every_run_has_system_metrics_that_count_on_over_a_resume(tmp_path):
    points = sampled(tmp_path)
    assert set(points) >= MINE
    assert points["system/process_memory_usage_megabytes"][0][1] > 10
    assert all(0 <= v <= 100 for _, v in points["system/system_memory_usage_percentage"])
    first = len(points["system/cpu_utilization_percentage"])
    again = sampled(tmp_path)
    for values in again.values():
        assert [s for s, _ in values] == list(range(len(values)))  # no step is doubled or missing
    assert len(again["system/cpu_utilization_percentage"]) >= first + 3


def test_gpus_are_sampled_where_there_are_some_and_what_one_does_not_support_is_skipped(tmp_path, monkeypatch):
    """A fake of NVIDIA's library answers for two GPUs, of which one does not measure its power."""

    class NVMLError(Exception):
        pass

    def power(handle):
        if handle == 1:
            raise NVMLError("not supported")
        return 312_500

    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetUtilizationRates=lambda h: types.SimpleNamespace(gpu=90 + h),
        nvmlDeviceGetMemoryInfo=lambda h: types.SimpleNamespace(used=20e9, total=80e9),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    points = sampled(tmp_path)
    newest = {k: values[-1][1] for k, values in points.items() if "gpu" in k}
    assert newest == {
        "system/gpu_0_utilization_percentage": 90.0,
        "system/gpu_0_memory_usage_megabytes": 20000.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_power_usage_watts": 312.5,
        "system/gpu_1_utilization_percentage": 91.0,
        "system/gpu_1_memory_usage_megabytes": 20000.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
    }


def test_a_broken_sensor_stops_nothing(root, uri, monkeypatch, caplog):
    from foundry.utils.log import get_logger

    get_logger().propagate = True
    monkeypatch.setattr("foundry.tracking.system.sample", lambda folder: 1 / 0)
    with tracker(root / ".foundry/train/sensor", uri, "sensor", system=True) as t:
        t.log(1, {"loss": 1.0})
    assert "system metrics stopped: ZeroDivisionError" in caplog.text
    assert history(uri, "sensor")[1] == [(1, 1.0)]


def test_system_metrics_reach_mlflow_with_those_of_the_training(root, uri):
    with tracker(root / ".foundry/train/system", uri, "system", system=True) as t:
        t.log(1, {"loss": 1.0})
    run, _ = history(uri, "system")
    assert set(run.data.metrics) >= {"loss", *MINE}
    assert len(connect(uri).get_metric_history(run.info.run_id, "system/disk_available_megabytes")) == 1
