"""The progress of long computations, and the time left."""

import sys
import time

import keras


class Progress(keras.callbacks.Callback):
    """On a terminal, one line for the whole training, with the time left; elsewhere, one line per epoch.

    Writes `updates` and `seconds` into the epoch's logs, and removes the summed loss: the sum of two opponents' losses
    says nothing about either of them. `begun` epochs were made before, in `seconds`.
    """

    def __init__(self, epochs: int, updates_an_epoch: int, begun: int = 0, seconds: float = 0.0):
        super().__init__()
        self.epochs, self.total = epochs, epochs * updates_an_epoch
        self.before = self.updates = begun * updates_an_epoch
        self.seconds_before = seconds
        self.on_terminal = sys.stdout.isatty()

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()
        if self.on_terminal:
            updates = self.total - self.before
            self.bar = keras.utils.Progbar(updates, stateful_metrics=self.model.terms, unit_name="update")

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.on_terminal:
            values = [(term, float(logs[term])) for term in self.model.terms]
            self.bar.update(self.updates - self.before, values, finalize=self.updates == self.total)

    def on_epoch_end(self, epoch, logs=None):
        logs.pop("loss", None), logs.pop("val_loss", None)
        seconds = time.perf_counter() - self.start
        logs["updates"], logs["seconds"] = self.updates, self.seconds_before + seconds
        if not self.on_terminal:
            left = seconds * (self.total - self.updates) / (self.updates - self.before)
            terms = ", ".join(f"{term} {logs[term]:.4g}" for term in self.model.terms)
            print(
                f"epoch {epoch + 1}/{self.epochs}, {self.updates} updates: {terms} nats; "
                f"{logs['seconds']:.0f} s, {left:.0f} s left",
                flush=True,
            )

    def on_train_end(self, logs=None):
        if self.on_terminal and self.updates < self.total:
            print(flush=True)


class TimeLeft:
    """Prints the progress of a long computation and the time left, at most one line every ten seconds."""

    def __init__(self):
        self.text, self.begun, self.printed = None, 0.0, 0.0

    def __call__(self, text: str, done: int, total: int):
        now = time.perf_counter()
        if text != self.text or done == 1:
            self.text, self.begun, self.printed = text, now, now
        if now - self.printed > 10.0:
            self.printed = now
            left = (now - self.begun) * (total - done) / max(done - 1, 1)
            print(f"{text}: {done:,} of {total:,}; {left:.0f} s left", flush=True)
