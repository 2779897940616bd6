"""What a person sees of a population in training: one bar over all epochs, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from ..store.folder import RunStore
from ..study import Study

Report = Callable[[dict[str, Any]], None]


class Progress:
    """One bar over all epochs of the missing models, from where their states stand."""

    def __init__(self, study: Study, missing: list[int], store: RunStore, show: bool) -> None:
        self.done: dict[int, int] = {}
        self.moved = False  # whether any epoch has ended
        for model in missing:
            with store.locked(model):  # a damaged state, or another process, stops here: before any process starts
                saved = store.load_state(model)
            self.done[model] = int(saved[1]["epoch"]) if saved else 0
        ahead = study.shadow_models * study.epochs - sum(study.epochs - epoch for epoch in self.done.values())
        self.bar = tqdm(
            total=study.shadow_models * study.epochs, initial=ahead, unit="epoch", desc=study.title,
            disable=not show or not missing, dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip

    def __enter__(self) -> Report:
        return self._report

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _report(self, event: dict[str, Any]) -> None:
        model, epoch = event["model"], event["epoch"]
        self.moved |= epoch > self.done[model]
        self.bar.update(epoch - self.done[model])
        self.done[model] = epoch
        self.bar.set_postfix_str(
            f"model {model}, train {event['train_accuracy']:.2f}, test {event['test_accuracy']:.2f}", refresh=False
        )
