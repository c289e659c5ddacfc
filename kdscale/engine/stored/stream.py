"""Stored teachers speak beside the stream: each batch carries what they said of its positions, and the first one is proved.

Reading is done where data are read, so a damaged store stops all ranks after the same step, as a damaged shard of images does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ...data import TrainStream
from ...data.stream import Steps
from ...errors import DataError
from ...types import Batch, Outputs
from .answers import Rows, witness
from .store import Store

TAUGHT = "stored"  # in Batch.extra: role -> Outputs
AHEAD = 2  # micro-batches that are read before they are asked for
CLOSE = 1e-3  # of witnesses: rounding of float32 on another device is a thousandth of it


class StoredStream:
    """A training stream whose batches carry what the stored teachers said of them; with the stream's own methods.

    Answers are found by position on the host, so the device is not waited for, and any step, rank and accumulation is as near
    as the first.
    """

    def __init__(self, stream: TrainStream, stores: Mapping[str, Store]) -> None:
        self.stream, self.stores = stream, stores
        self._running: Iterator[Batch] | None = None

    def batches(self, start_step: int) -> Iterator[Batch]:
        """As ``TrainStream.batches``. DataError for a damaged store, and for a first batch that the teachers did not see."""
        self.close()
        self._running = self._batches(start_step)
        return self._running

    def _batches(self, start_step: int) -> Iterator[Batch]:
        own = self.stream
        steps = Steps(own.plan, own.rank, own.ranks, own.accumulate, start_step)
        with ThreadPoolExecutor(1, "stored") as reader:
            waiting = deque(reader.submit(self._read, steps, number) for number in range(min(AHEAD, len(steps))))
            for number, batch in enumerate(own.batches(start_step)):
                found = waiting.popleft().result()
                if number + AHEAD < len(steps):
                    waiting.append(reader.submit(self._read, steps, number + AHEAD))
                if number == 0:
                    self._prove(start_step, batch, found)
                said = {role: self.stores[role].form.logits(rows, own.device) for role, rows in found.items()}
                batch.extra[TAUGHT] = {role: Outputs(logits) for role, logits in said.items()}
                yield batch

    def _read(self, steps: Steps, number: int) -> dict[str, Rows]:
        step, positions = steps.step(number), steps.positions(number)
        return {role: store.read(step, positions) for role, store in self.stores.items()}

    def _prove(self, step: int, batch: Batch, found: Mapping[str, Rows]) -> None:
        """Once a start, so that waiting for the device does not matter: versions of libraries draw crops too."""
        samples, seen = batch.index.cpu().numpy(), witness(batch.images).cpu().numpy()
        for role, rows in found.items():
            other = np.flatnonzero((rows["sample"] != samples) | ~(np.abs(rows["witness"] - seen) < CLOSE))
            if len(other):
                store = self.stores[role]
                raise DataError(
                    f"{role}: {len(other)} of {len(rows)} images of step {step} are not those"
                    f" that the teacher in {store.place} saw, though the recipe is the same: it was taught under"
                    f" {_versions(store.facts['made_by'])}; take these versions, or teach anew"
                )

    def close(self) -> None:
        """Ends the reading; the stream may be started again."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
            self._running = None
        self.stream.close()
        for store in self.stores.values():
            store.close()


def _versions(made_by: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made_by.items())
