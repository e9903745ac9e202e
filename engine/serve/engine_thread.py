"""The one thread that computes: it steps the generation engine of every model that has requests.

Only this thread touches the engines. Other threads submit requests and are notified after each step.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.console import warn
from engine.files import first_line
from engine.generate.engine import GenerationEngine, Request
from engine.serve.protocol import APIError


@dataclass(eq=False, kw_only=True)
class ServedRequest(Request):
    """A request, the engine that answers it, and the client's side."""

    engine: GenerationEngine
    notify: Callable[[], None]  # called after every step that changed the answer
    deadline: float  # of time.monotonic
    error: APIError | None = None  # why there is no whole answer


class EngineThread:
    """Started and stopped with the server; holds at most `max_requests`."""

    def __init__(self, max_requests: int):
        self.max_requests = max_requests
        self.num_requests = 0  # submitted and not finished
        self._inbox: queue.SimpleQueue[ServedRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._requests: set[ServedRequest] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was submitted, then end."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, requests: Sequence[ServedRequest]) -> None:
        """Submit requests, all of them or none.

        Raises:
            APIError: There is no room for them now, or never room for so many.
        """
        if len(requests) > self.max_requests:
            message = f"{len(requests)} answers exceed the {self.max_requests} of this server (--max_queue)"
            raise APIError(400, message, param="n")
        with self._lock:
            if self.num_requests + len(requests) > self.max_requests:
                message = f"{self.num_requests} requests are running or waiting, of at most {self.max_requests}"
                raise APIError(429, message, code="queue_full")
            self.num_requests += len(requests)
        for request in requests:
            self._inbox.put(request)

    def _run(self) -> None:
        is_open = True
        while is_open or self._requests:
            is_open = self._receive(wait=not self._requests) and is_open
            for engine in {request.engine for request in self._requests}:
                self._step(engine)

    def _receive(self, wait: bool) -> bool:
        """Hand what was submitted to its engines; return False when the thread is to end."""
        while wait or not self._inbox.empty():
            request = self._inbox.get()
            if request is None:
                return False
            self._requests.add(request)
            request.engine.add(request)
            wait = False
        return True

    def _step(self, engine: GenerationEngine) -> None:
        now = time.monotonic()
        for request in self._requests:
            if now > request.deadline and not request.error:
                request.error = APIError(503, "the answer took longer than this server allows", code="timeout")
                request.cancel()
        try:
            updated = engine.step()
        except Exception as error:  # whatever it is, waiting clients must hear of it, and later requests be answered
            warn(f"error: {first_line(error)}")
            updated = [request for request in self._requests if request.engine is engine]
            engine.running.clear()
            engine.waiting.clear()
            engine.cache.kv.zero_()  # a NaN would reach the next requests
            for request in updated:
                if not request.finish_reason:
                    request.error = request.error or APIError(500, first_line(error))
                    request.finish("error")
        for request in self._requests.intersection(updated):
            if request.finish_reason:
                self._requests.remove(request)
                with self._lock:
                    self.num_requests -= 1
            request.notify()
