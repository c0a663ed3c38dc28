"""Photographs that wait while the classifier works go through it together."""

import logging
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import NamedTuple

from opam.app.classifier import Classification, Classifier
from opam.app.serve.observing import Measures
from opam.photographs.decoding.images import Photograph, decode_photograph
from opam.pipeline.errors import OpamError

BATCH = 8
"""Photographs that lie decoded in memory at once, however many wait."""

log = logging.getLogger(__name__)

Found = tuple[Photograph, Classification]


class NotClassified(Exception):  # noqa: N818
    """The log says why."""


class Asked(NamedTuple):
    """A photograph's file, where its answer goes, and since when it waits."""

    content: bytes
    answer: "Future[Found]"
    since: float


class Batches:
    """A queue of photographs, and one thread that classifies what waits in it.

    Attributes:
        classifier: None before `start`.
        working: whether a batch is being classified.
    """

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        self.classifier: Classifier | None = None
        self.working = False
        self._queue: SimpleQueue[Asked] = SimpleQueue()

    def start(self, classifier: Classifier) -> None:
        """Begin to classify; asked may have been before."""
        self.classifier = classifier
        Thread(target=self._work, args=(classifier,), name="classifier", daemon=True).start()

    def ask(self, content: bytes) -> "Future[Found]":
        """Queue a photograph.

        Args:
            content: its file.

        Returns:
            The photograph and its classification, once they are there; or `OpamError`: it cannot
            be decoded; or `NotClassified`.
        """
        asked = Asked(content, Future(), perf_counter())
        self._queue.put(asked)
        return asked.answer

    def _work(self, classifier: Classifier) -> None:
        while True:
            batch = self._next()
            self.working = True
            self._classify(classifier, batch)
            self.working = False
            del batch  # no photograph stays in memory until the next comes

    def _next(self) -> list[Asked]:
        """Wait for a photograph, and take those that wait with it."""
        batch = [self._queue.get()]
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get())
        return [each for each in batch if each.answer.set_running_or_notify_cancel()]

    def _classify(self, classifier: Classifier, batch: list[Asked]) -> None:
        if not batch:
            return
        started = perf_counter()
        self.measures.batch_size.observe(len(batch))
        side = classifier.steps["max_side"]
        decoded = []
        for content, answer, since in batch:
            self.measures.waiting_seconds.observe(started - since)
            try:  # one after the other: the largest that is let through takes 5 GB
                decoded.append((answer, decode_photograph(content, "The photograph", side)))
            except OpamError as error:
                # Its traceback would keep the whole batch in memory.
                answer.set_exception(error.with_traceback(None))
            except Exception:
                self._fail(answer)
        self._answer(classifier, decoded)
        self.measures.classifying_seconds.observe(perf_counter() - started)

    def _answer(
        self, classifier: Classifier, decoded: list[tuple["Future[Found]", Photograph]]
    ) -> None:
        """Classify together; where that fails, each alone, so that one fails alone."""
        try:
            found = classifier.classify([photograph for _, photograph in decoded])
        except Exception:
            if len(decoded) == 1:
                self._fail(decoded[0][0])
                return
            found = None
        if found is None:  # here, as the error holds what filled the memory
            for each in decoded:
                self._answer(classifier, [each])
            return
        self.measures.photographs.inc(len(found))
        for (answer, photograph), classification in zip(decoded, found, strict=True):
            answer.set_result((photograph, classification))

    def _fail(self, answer: "Future[Found]") -> None:
        log.exception("a photograph could not be classified")
        answer.set_exception(NotClassified())
