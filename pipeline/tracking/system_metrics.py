"""CPU, memory, disk, network and GPU use of this machine during a run, written to the run's spool."""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

FIRST_SECONDS = 0.5  # before the first sample
SAMPLE_SECONDS = 5.0  # between two samples


class SystemMetrics:
    """Thread that appends a sample to a file of events every `SAMPLE_SECONDS`, and a last one when it is stopped.

    MLflow's monitors measure. MLflow's thread around them is not used: it ends when one request to the server fails.

    Args:
        path: of the events; the steps of an existing file are continued.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait until it has written its last sample."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu_monitors()]
        step = len(self._path.read_text(encoding="utf-8").splitlines()) if self._path.exists() else 0
        stopped, pause = False, FIRST_SECONDS
        while not stopped:
            stopped, pause = self._stopped.wait(pause), SAMPLE_SECONDS
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            event = {"kind": "metrics", "time": int(time.time() * 1000), "step": step}
            event["values"] = {f"system/{name}": value for name, value in values.items()}
            try:
                with self._path.open("a", encoding="utf-8") as events:
                    events.write(json.dumps(event) + "\n")
            except OSError:  # a full disk, of which the training process warns
                return
            step += 1


def _gpu_monitors() -> list[Any]:
    """NVIDIA's monitor, or AMD's; none without a GPU or without the library that reads it."""
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for kind in (GPUMonitor, ROCMMonitor):
        try:
            return [kind()]
        except Exception as error:  # each library has exceptions of its own
            logging.getLogger(__name__).debug("%s: %s", kind.__name__, error)
    return []
