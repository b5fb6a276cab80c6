"""A training process for `python -m bench soak`, to be killed: it resumes from its folder, trains
to the end, and leaves the last checkpoint there.

    python -m bench.soak_run FOLDER FAMILY SEED EPOCHS     one run
    python -m bench.soak_run --serve                       a run for each such line of standard
                                                           input, in a fork: no imports to wait for
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def train(folder: Path, family: str, seed: int, epochs: int) -> None:
    """With all that has a state: dropout, batch norm, what streams carry, EMA, early stopping, a
    plateau schedule, metrics, two loaders that shuffle, windows of two batches.
    """
    import framework as fw
    from bench.families import FAMILIES
    from framework import optimizers
    from framework.trainer import (
        Accuracy,
        EarlyStopping,
        JSONLLog,
        ModelCheckpoint,
        Recall,
        TerminateOnNaN,
        Trainer,
    )
    from framework.trainer.store import checkpoints_in

    fw.set_default_device("cpu")
    made = FAMILIES[family]
    fw.manual_seed(seed)
    model = made.model()
    trainer = Trainer(
        model,
        made.loss,
        made.optimizer(model),
        optimizers.ReduceOnPlateau(patience=20),
        metrics=[Accuracy(), Recall(3)] if made.classifies else [],
        callbacks=[
            EarlyStopping("val_loss", patience=epochs),
            TerminateOnNaN(),
            ModelCheckpoint(folder, every_steps=3),
            JSONLLog(folder / "metrics.jsonl"),
        ],
        accumulate=2,
        clip_norm=1.0,
        ema=optimizers.EMA(model, 0.9),
    )
    loaders = [made.loader(seed=seed + i) for i in range(2)]
    resume = folder if checkpoints_in(folder) else None
    trainer.fit(loaders[0], loaders[1], epochs, resume=resume)


def serve() -> None:
    """A fork for each line; its pid at its start, and as a negative number at its end."""
    import tempfile

    from bench.families import FAMILIES

    for family in FAMILIES:  # imports and compiled kernels, which every fork then has
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), family, 0, 1)
    print(len(FAMILIES), flush=True)
    for line in sys.stdin:
        folder, family, seed, epochs = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                train(Path(folder), family, int(seed), int(epochs))
            finally:
                sys.stdout.flush()
                os._exit(0 if sys.exc_info()[0] is None else 1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        _folder, _family, _seed, _epochs = sys.argv[1:]
        train(Path(_folder), _family, int(_seed), int(_epochs))
