"""The one thread that computes: it steps the slots of every model that has something to say.

Only this thread touches slots. Others hand requests in and are told, after each step, what has become of theirs.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.console import warn
from engine.files import first_line
from engine.generate.engine import GenerationEngine, Request

Tell = Callable[[], None]


class Full(Exception):
    """The server already holds as many requests as it may."""


@dataclass(eq=False)
class Job:
    """A request, where it is to be answered, and who is told of every step."""

    request: Request
    slots: GenerationEngine
    tell: Tell
    deadline: float  # of time.monotonic
    error: str = ""  # the computation failed, or it took too long


class EngineThread:
    """Started and stopped with the server; `limit` requests may be in it at once."""

    def __init__(self, limit: int):
        self.limit = limit
        self.running = 0  # requests that were handed in and have not ended
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._jobs: dict[Request, Job] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed in, then end."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, jobs: list[Job]) -> None:
        """Hand requests in together. Full: none of them was taken; ValueError: they are more than it ever takes."""
        if len(jobs) > self.limit:
            raise ValueError(f"{len(jobs)} answers at once; this server holds at most {self.limit} (--max_queue)")
        with self._lock:
            if self.running + len(jobs) > self.limit:
                raise Full(f"{self.running} requests are being answered or wait, of at most {self.limit}")
            self.running += len(jobs)
        for job in jobs:
            self._inbox.put(job)

    def _run(self) -> None:
        open_ = True
        while open_ or self._jobs:
            open_ = self._take_in(wait=not self._jobs) and open_
            for slots in {job.slots: None for job in self._jobs.values()}:
                self._step(slots)

    def _take_in(self, wait: bool) -> bool:
        """Put what was handed in into the queues of its slots; False when the thread is asked to end."""
        while True:
            try:
                job = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._jobs[job.request] = job
            job.slots.add(job.request)
            wait = False

    def _step(self, slots: GenerationEngine) -> None:
        now = time.monotonic()
        for job in self._jobs.values():
            if now > job.deadline and not job.error:
                job.error = "timeout"
                job.request.cancel()
        try:
            concerned = slots.step()
        except Exception as error:  # whatever it is, those who wait must be told, and the next ones be answered
            warn(f"error: {first_line(error)}")
            concerned = [request for request, job in self._jobs.items() if job.slots is slots]
            slots.running.clear()
            slots.waiting.clear()
            slots.cache.kv.zero_()  # what is no number would reach those who sit down next
            for request in concerned:
                if not request.finish_reason:
                    self._jobs[request].error = self._jobs[request].error or first_line(error)
                    request.finish("error")
        for request in concerned:
            job = self._jobs[request]
            if request.finish_reason:
                del self._jobs[request]
                with self._lock:
                    self.running -= 1
            job.tell()
