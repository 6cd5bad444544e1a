"""An engine for the inference bench: ``inference_worker`` as a process, with the settings that the service has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from services.inference.engine_environment import SPIN_COUNT, engine_environment

_START_SECONDS = 300.0
_ASK_SECONDS = 900.0
_LOG_CHARS = 1500


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engines are set up; see the settings of the same names of services/inference."""

    context_window: int
    threads: int
    kv_cache_bytes: int
    max_running: int
    spin_count: int = SPIN_COUNT
    compile: bool = False
    gpu_memory_share: float = 0.28
    """On a GPU: of its memory, 0..1. Three engines are there at once when streams are compared."""


class EngineError(Exception):
    """The engine did not start or ended; the text has the end of its log."""


def environment(options: EngineOptions) -> dict[str, str]:
    """What a process with an engine is started with: this one's environment, and the rest as the service has it."""
    engine = engine_environment(options.threads, options.spin_count)
    return {**os.environ, **engine, "VLLM_LOGGING_LEVEL": "ERROR"}


class Engine:
    """A running worker. Raises EngineError when it does not start, and when it ends before it has answered."""

    def __init__(self, folder: Path, options: EngineOptions, log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.inference_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment(options),
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.ready: Mapping[str, Any] = self._exchange({"folder": str(folder), **asdict(options)}, _START_SECONDS)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One method of ``inference_worker.Worker``."""
        return self._exchange({"op": op, **arguments}, _ASK_SECONDS)

    def cpu_seconds(self) -> float:
        """User and system time that the process has taken."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End it."""
        # The end of its input ends it; a process that is gone already took what was written to it along.
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _exchange(self, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        # A kill ends the wait for a line.
        overdue = threading.Timer(seconds, self._process.kill)
        overdue.start()
        try:
            self._input.write(json.dumps(asked) + "\n")
            self._input.flush()
            line = self._output.readline()
        except BrokenPipeError:
            line = ""
        finally:
            overdue.cancel()
        if not line:
            self._process.kill()
            self.close()
            raise EngineError(log_end(self._log))
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(folder: Path, options: EngineOptions, log: Path) -> Iterator[Engine]:
    """An engine for a while."""
    engine = Engine(folder, options, log)
    try:
        yield engine
    finally:
        engine.close()


def log_end(log: Path) -> str:
    """The last lines of a log, for an error's text."""
    try:
        text = log.read_text("utf-8", "replace").strip()
    except OSError:
        text = ""
    return " ".join(text[-_LOG_CHARS:].split()) or "it ended without a word"
