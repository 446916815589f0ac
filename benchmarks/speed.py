"""Measure the speed of training, against the published recipe and against the limit of the machine.

    python benchmarks/speed.py [--rounds 5] [--systems oreilly recommended]      (or: make bench)

Prints a table: training images per second of the published recipe (published.py), with its JPEGs decoded for each batch
and without, and of `train.train` in fp32 and, if the processor has units for it, bf16; and their ratios to the recipe
and to the limit. The limit is the rate of large matrix products divided by the operations of a step, counted from the
layers in systems.py (R1 is not counted). Each measurement runs in a process of its own, in turn, in several rounds.
Figures are medians (minimum to maximum), and ratios are medians of the ratios within a round.
"""

import argparse
import io
import itertools
import statistics
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import published as recipe
from timing import in_own_process, machine, milliseconds_per_step, spread

from common import cli
from graph.session import has_fast_bfloat16, tf
from sampling.generator import PRETRAINED, draw_faces
from systems import PRECISIONS, SYSTEMS, System

DECODED, PUBLISHED = 'published, JPEGs decoded', 'published, no JPEGs'
WARM_UP = 3  # steps that are not counted
NOISE = 6  # standard deviation of noise on the JPEGs, 0..255, which makes them as long as CelebA's: 7 kB
MATRIX_SIDE = 3072


# --- The operations of a step


def multiply_adds(layers, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one pass of an input of `shape`, (side, side, channels) or (units,), through `layers`."""
    total = 0
    for layer in layers:
        if layer.kind == 'dense':
            total += int(np.prod(shape)) * int(np.prod(layer.output))
            shape = layer.output
            continue

        # A convolution multiplies its kernel at each position of the output, a transposed one at each of the input.
        side, _, channels = shape
        if layer.kind == 'conv2d':
            covered = side if layer.padding == 'SAME' else side - layer.kernel + 1
            positions = side = -(-covered // layer.stride)
        else:
            positions = side
            side = side * layer.stride if layer.padding == 'SAME' else (side - 1) * layer.stride + layer.kernel
        total += positions**2 * layer.kernel**2 * channels * layer.output
        shape = side, side, layer.output
    return total


def step_operations(system: System) -> int:
    """Floating-point operations of a training step for one image.

    A pass forward, and the gradients of weights and of inputs, cost one pass each. The generator makes 3 passes. The
    discriminator makes 3 for the real and 3 for the generated images; for the generator's loss 1 more backward, and
    with alternating updates 1 forward before it.
    """
    g = multiply_adds(system.generator, (system.latent_size,))
    d = multiply_adds(system.discriminator, system.image_shape)
    return 2 * (3 * g + (8 if system.update_order == 'alternating' else 7) * d)


# --- What is measured, in a process of its own


def matrix_products(precision: str) -> float:
    """Floating-point operations per second of square matrix products."""
    with tf.Graph().as_default(), tf.Session() as session:
        shape = [MATRIX_SIDE, MATRIX_SIDE]
        a, b = (tf.Variable(tf.cast(tf.random_normal(shape), PRECISIONS[precision])) for _ in range(2))
        product = tf.matmul(a, b).op
        session.run(tf.global_variables_initializer())
        times: list[float] = []
        while len(times) < 6 or sum(times) < 4:
            began = time.perf_counter()
            session.run(product)
            times.append(time.perf_counter() - began)
    return 2 * MATRIX_SIDE**3 / statistics.median(times[2:])  # without the first two, to warm up


def published(batch: int, images: int, decode: bool) -> float:
    """Training images per second of the published recipe. decode: decode the JPEGs of each batch, as published."""
    batches = itertools.repeat(np.random.default_rng(0).random((batch, 28, 28, 3)) - 0.5)
    if decode:
        batches = recipe.get_batches(zipfile.ZipFile(make_jpegs()), batch)
    steps = recipe.train(batches, batch, WARM_UP + images // batch)
    for _ in range(WARM_UP):
        next(steps)
    began = time.perf_counter()
    count = sum(1 for _ in steps)
    return batch * count / (time.perf_counter() - began)


def ours(batch: int, images: int, system: str, precision: str) -> float:
    """Training images per second of `train.train`."""
    flags = f'--system {system} --batch-size {batch} --precision {precision} --no-xla --steps-per-call 1'
    return 1000 * batch / milliseconds_per_step(flags, images // batch, WARM_UP)


def make_jpegs() -> io.BytesIO:
    """A zip archive of aligned JPEGs, 178x218: enlarged demo faces with noise."""
    rng, archive = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as writer:
        for number, face in enumerate(next(draw_faces(PRETRAINED, 64, seed=0))):
            pixels = np.asarray(Image.fromarray(face).resize((178, 218), Image.Resampling.BICUBIC))
            noisy = pixels + NOISE * rng.standard_normal((218, 178, 1))
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=75)
            writer.writestr(f'img_align_celeba/{number:06}.jpg', file.getvalue())
    return archive


# --- The table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--systems', nargs='+', choices=SYSTEMS, default=['oreilly', 'recommended'])
    parser.add_argument('--batches', type=int, nargs='+', default=[16, 64, 128], help='batch sizes (16 64 128)')
    parser.add_argument('--images', type=int, default=2000, help='images trained on in each measurement (2000)')
    args = parser.parse_args()
    print(machine())

    # The kinds of training: a function, its options, and the system and precision that decide the limit.
    precisions = ['fp32', 'bf16'] if has_fast_bfloat16() else ['fp32']
    recipes = [DECODED, PUBLISHED]
    kinds: dict = {kind: (published, {'decode': kind == DECODED}, 'oreilly', 'fp32') for kind in recipes}
    for system, precision in itertools.product(args.systems, precisions):
        kinds[f'{system}, {precision}'] = ours, {'system': system, 'precision': precision}, system, precision

    # Measure all of them in turn, and the matrix products in the same minutes.
    rates: dict = {(batch, kind): [] for batch in args.batches for kind in kinds}
    products: dict = {(batch, precision): [] for batch in args.batches for precision in precisions}
    for number in range(args.rounds):
        for batch, precision in products:
            products[batch, precision].append(in_own_process(matrix_products, precision))
        for batch, kind in cli.progress(iterable=list(rates), desc=f'Training, round {number + 1}'):
            function, options, *_ = kinds[kind]
            rates[batch, kind].append(in_own_process(function, batch, args.images, **options))

    # Print the operations and the limits, and then the table.
    for precision in precisions:
        giga = [value / 1e9 for batch in args.batches for value in products[batch, precision]]
        print(f'Matrix products, {precision}: {spread(giga)} GFLOP/s')
    for system in args.systems:
        print(f'A step of {system}: {step_operations(SYSTEMS[system]) / 1e9:.2f} GFLOP per image')
    print(f'\n| batch | training | images/s | / {DECODED} | / {PUBLISHED} | / limit |\n|' + ' --- |' * 6)
    for (batch, kind), rate in rates.items():
        *_, system, precision = kinds[kind]
        limit = np.array(products[batch, precision]) / step_operations(SYSTEMS[system])
        ratios = [np.median(np.divide(rate, other)) for other in (*(rates[batch, each] for each in recipes), limit)]
        print(f'| {batch} | {kind} | {spread(rate)} | ' + ' | '.join(f'{ratio:.2f}' for ratio in ratios) + ' |')


if __name__ == '__main__':
    main()
