"""Training and inference of DeepLight as a user of TensorFlow and Keras writes them: float32, TFRecords, `fit`.

    pip install -r benchmarks/peers/requirements-keras.txt
    python benchmarks/peers/keras_loop.py FOLDER --batch 24 --steps 30 --warm-up 5 --threads 2

FOLDER holds `volumes/000000.npy`, … (each float32 (Z, Y, X), zero outside the brain) and `labels.npy` ((N,) int64).
The volumes are first written to FOLDER/tfrecords, which is not timed and is skipped where that folder exists. A
training step is timed from the end of the one before it, so waiting for data is in it; inference has its batch in
memory. The last line of stdout is one JSON object: versions, number of parameters, milliseconds per volume of every
timed step, and the loss of every step, the untimed ones first.

The network is that of `deeplight_core/models/deeplight.py`, with 512 parameters fewer: PyTorch's LSTM has a second bias
vector of 4 × 64 in either direction. Initial weights differ in detail only (Keras truncates the normal distribution and
draws the LSTM's two kernels apart), which changes no time.

Axis letters: B batch, Z slices (bottom to top), Y, X; C channels, H, W rows and columns of a feature map.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only; read when TensorFlow is imported
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

CHANNELS = (16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
CONV_DROPOUT = (0.0, 0.2, 0.4)  # for each group of four layers
LSTM_UNITS = 64
LEARNING_RATE = 1e-4
VOLUMES_PER_FILE = 100
SHUFFLE_BUFFER = 200  # volumes; 0.7 GB on the 2 mm grid
INTER_OP_THREADS = 2  # room for the input pipeline beside the step; 1 is as fast within the noise
# What the default "auto" comes to on a CPU too: Keras compiles no model with an LSTM that cuDNN could run, whether or
# not there is a GPU. With True, training takes more than twice as long on the 8 mm grid, inference nearly twice.
JIT_COMPILE = False


def main() -> None:
    options = _options()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(INTER_OP_THREADS)
    keras.utils.set_random_seed(0)
    shape = np.load(options.folder / "volumes" / "000000.npy", mmap_mode="r").shape
    dataset = read_records(write_records(options.folder), shape, options.batch)
    model = deeplight(shape, options.states)
    clock = StepClock()
    n_steps = options.warm_up + options.steps
    model.fit(dataset, steps_per_epoch=n_steps, callbacks=[clock], verbose=0, shuffle=False)  # the dataset shuffles
    volumes, _ = next(iter(dataset))
    inference = inference_seconds(model, volumes, options.warm_up, options.steps)
    result = {
        "software": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "n_parameters": model.count_params(),
        "training_ms_per_volume": [1000 * s / options.batch for s in clock.seconds[options.warm_up :]],
        "inference_ms_per_volume": [1000 * s / options.batch for s in inference],
        "losses": clock.losses,
    }
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds volumes/ and labels.npy")
    parser.add_argument("--batch", type=int, default=24, help="volumes per step (default 24)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps (default 30)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them that are not timed (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of one operation (default 2)")
    parser.add_argument("--states", type=int, default=16, help="output neurons (default 16)")
    return parser.parse_args()


def write_records(folder: Path) -> list[str]:
    """Write FOLDER/tfrecords unless it is there: one Example per volume; the files' paths in order."""
    records = folder / "tfrecords"
    if not records.exists():
        partial = folder / "tfrecords.partial"  # renamed when complete: an interrupted run leaves no half folder
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        labels = np.load(folder / "labels.npy")
        for start in range(0, len(labels), VOLUMES_PER_FILE):
            with tf.io.TFRecordWriter(str(partial / f"{start:06d}.tfrecord")) as writer:
                for i in range(start, min(start + VOLUMES_PER_FILE, len(labels))):
                    volume = np.load(folder / "volumes" / f"{i:06d}.npy").astype("<f4")
                    feature = {
                        "volume": tf.train.Feature(bytes_list=tf.train.BytesList(value=[volume.tobytes()])),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[i]])),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=feature))
                    writer.write(example.SerializeToString())
        partial.rename(records)
    return sorted(str(path) for path in records.glob("*.tfrecord"))


def read_records(files: list[str], shape: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    """Endless batches of shuffled volumes (B, Z, Y, X) and labels (B,)."""
    features = {"volume": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return tf.reshape(tf.io.decode_raw(example["volume"], tf.float32), shape), example["label"]

    return (
        tf.data.TFRecordDataset(files, num_parallel_reads=tf.data.AUTOTUNE)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .shuffle(SHUFFLE_BUFFER)
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def deeplight(shape: tuple[int, int, int], n_states: int) -> keras.Model:
    """The compiled decoder: (B, Z, Y, X) → probabilities (B, n_states)."""
    z, y, x = shape
    volumes = keras.Input(shape)
    maps = keras.ops.reshape(volumes, (-1, y, x, 1))  # (B·Z, Y, X, 1)
    for i, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True)):
        convolution = layers.Conv2D(channels, 3, stride, "same", activation="relu", kernel_initializer="glorot_normal")
        maps = convolution(maps)
        maps = layers.SpatialDropout2D(CONV_DROPOUT[i // 4])(maps)
    _, height, width, channels = maps.shape
    slices = keras.ops.reshape(maps, (-1, z, height * width * channels))  # (B, Z, H·W·C)
    slices = layers.Dropout(0.5)(slices)
    lstm = layers.LSTM(LSTM_UNITS, kernel_initializer="glorot_normal", recurrent_initializer="glorot_normal")
    last = layers.Bidirectional(lstm)(slices)  # (B, 128): state after the top slice, and after the bottom one
    last = layers.Dropout(0.5)(last)
    probabilities = layers.Dense(n_states, activation="softmax", kernel_initializer="glorot_normal")(last)
    model = keras.Model(volumes, probabilities)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy", jit_compile=JIT_COMPILE)
    return model


class StepClock(keras.callbacks.Callback):
    """Wall time and loss of every training step.

    seconds : from the end of the step before (of the first one: from the start of training) to the step's end
    losses : mean over the step's volumes
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._loss_sum = 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._end = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        loss_sum = (batch + 1) * float(logs["loss"])  # Keras gives the mean of all steps so far
        self.losses.append(loss_sum - self._loss_sum)
        self._loss_sum = loss_sum
        end = time.perf_counter()
        self.seconds.append(end - self._end)
        self._end = end


def inference_seconds(model: keras.Model, volumes: tf.Tensor, warm_up: int, steps: int) -> list[float]:
    """Seconds of each of `steps` forward passes without dropout, after `warm_up` that are not timed."""

    @tf.function(jit_compile=JIT_COMPILE)  # a little faster than model.predict_on_batch, which does the same
    def predict(batch: tf.Tensor) -> tf.Tensor:
        return model(batch, training=False)

    seconds = []
    for _ in range(warm_up + steps):
        start = time.perf_counter()
        predict(volumes).numpy()
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


if __name__ == "__main__":
    main()
