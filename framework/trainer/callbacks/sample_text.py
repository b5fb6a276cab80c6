"""Show what a language model writes by now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from framework.data import Tokenizer
from framework.generation import generate_text
from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


log = logging.getLogger("framework")


class SampleText(Callback):
    """After each epoch, `tokens` tokens of text by the model, from `prompt` on.

    Args:
        tokenizer: the model's.
        prompt: what the text begins with.
        tokens: how many to write.
        temperature: see `framework.generation.Sampling`.
        seed: of the draws, the same in every epoch; the trainer's random numbers are not touched.
        show: called with epoch and text; prints them unless given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        tokens: int = 200,
        temperature: float = 0.8,
        seed: int = 0,
        show: Callable[[int, str], None] | None = None,
    ) -> None:
        self.tokenizer, self.prompt, self.tokens = tokenizer, prompt, tokens
        self.temperature, self.seed, self.show = temperature, seed, show or _show

    def on_epoch_end(self, trainer: Trainer) -> None:
        with trainer.evaluating():
            pieces = generate_text(
                trainer.model,
                self.tokenizer,
                self.prompt,
                self.tokens,
                temperature=self.temperature,
                seed=self.seed,
            )
            try:
                text = self.prompt + "".join(pieces)
            except ValueError as error:  # logits of NaN: the training says what is wrong
                log.warning("no sample of text: %s", error)
                return
            self.show(trainer.epoch, text)


def _show(epoch: int, text: str) -> None:
    print(f"--- epoch {epoch}\n{text}", flush=True)
