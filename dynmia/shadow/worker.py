"""A training process: ``python -m dynmia.shadow.worker JOB`` reads model numbers from its input and reports JSON lines.

The parent (:mod:`dynmia.shadow.engine`) writes JOB, a folder with the study and the pool as plain arrays; the images
are memory-mapped, so that all processes share one copy of them.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path


def main(job: Path) -> None:
    """Serve shards until the input ends."""
    import torch

    from ..errors import UserError
    from ..pool.pool import Pool
    from ..store.folder import RunStore
    from ..study import Study
    from .shard import DeviceData, keep_freed_memory, train_shard

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up: no lock, no half-written file stays
    torch.set_num_threads(1)
    keep_freed_memory()
    about = json.loads((job / "job.json").read_text())
    pool = Pool.load(job, about["classes"])
    study = Study.from_dict(about["study"])
    store = RunStore(about["folder"], study, about["fingerprint"], {})
    data = DeviceData.of(pool, "cpu")

    models: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def listen() -> None:
        """Pass on what the parent asks for; where it has died, end at once: its input is read between models only."""
        for line in os.fdopen(os.dup(0)):  # sys.stdin is closed at the end, which aborts where it is being read
            models.put(int(line))
        models.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's own model prints goes to the log, not between the reports

    def report(event: dict) -> None:
        print(json.dumps(event), file=reports, flush=True)  # a dead parent ends the worker here, by a broken pipe

    for model in iter(models.get, None):
        try:
            finished = train_shard(study, pool, data, model, store, report, about["deadline"])
            report({"model": model, "free": finished})
        except UserError as error:
            report({"model": model, "error": str(error), "kind": type(error).__name__})
            return


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
