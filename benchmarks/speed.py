"""Measure the speed, against the published recipe and against what the machine can do.

    python benchmarks/speed.py [--rounds 5] [--csv FILE]      (or: make bench)

Everything is measured in a process of its own, in turn, in several rounds; figures are medians (minimum to maximum).
Training is timed as `train.py` runs it: by its own loop, from its own log. The limit is the rate of large matrix
products divided by the operations of a step, counted from the layers of `systems.py`.
"""

import argparse
import contextlib
import csv
import datetime
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import published as recipe  # noqa: E402

import helper  # noqa: E402
import train  # noqa: E402
from common import cli, files  # noqa: E402
from config.settings import choose_settings, parse_arguments  # noqa: E402
from config.sizes import resized  # noqa: E402
from dataset.prepared import save_prepared  # noqa: E402
from graph.replica import Replica  # noqa: E402
from graph.session import open_session, tf  # noqa: E402
from sampling.generator import PRETRAINED, draw_faces  # noqa: E402
from systems import PRECISIONS, SYSTEMS, System  # noqa: E402
from training.run import Run  # noqa: E402

BATCHES = (16, 64, 128)
STEPS = {16: 80, 64: 30, 128: 16}  # some seconds
WARM_UP = 3  # steps that are not counted
IMAGES = 4096
JPEG_BYTES = 7100  # a file of CelebA has so many on average


def multiply_adds(layers, shape) -> int:
    """Multiply-adds of one pass of an input of `shape` (H, W, C), or (units,), through `layers`."""
    total = 0
    for layer in layers:
        if layer.kind == 'dense':
            total += int(np.prod(shape)) * int(np.prod(layer.output))
            shape = layer.output
            continue
        side, _, channels = shape
        if layer.kind == 'conv2d':
            cover = side if layer.padding == 'SAME' else side - layer.kernel + 1
            side = -(-cover // layer.stride)
            positions = side
        else:
            positions = side
            side = side * layer.stride if layer.padding == 'SAME' else (side - 1) * layer.stride + layer.kernel
        total += positions**2 * layer.kernel**2 * channels * layer.output
        shape = (side, side, layer.output)
    return total


def step_operations(system: System) -> int:
    """Floating-point operations of a training step for one image.

    A network and its gradients of weights and inputs cost three passes. The generator makes 3; the
    discriminator 3 over the real and 3 over the generated images; for the generator's loss 1 more backward,
    and with alternating updates 1 forward before it.
    """
    g = multiply_adds(system.generator, (system.latent_size,))
    d = multiply_adds(system.discriminator, system.image_shape)
    return 2 * (3 * g + (8 if system.update_order == 'alternating' else 7) * d)


# --- what runs in a process of its own


def write_jpegs(path, count=20_000):
    """A zip archive of aligned JPEGs, 178x218: enlarged demo faces, with noise until they are as long as CelebA's."""
    rng = np.random.default_rng(0)
    faces = next(draw_faces(PRETRAINED, 64, seed=0))
    files = []
    for face in faces:
        pixels = np.asarray(Image.fromarray(face).resize((178, 218), Image.Resampling.BICUBIC)).astype(float)
        for noise in range(0, 64, 2):
            file = io.BytesIO()
            noisy = (pixels + noise * rng.standard_normal((218, 178, 1))).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(file, 'JPEG', quality=75)
            if file.tell() >= JPEG_BYTES:
                break
        files.append(file.getvalue())
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(count):
            archive.writestr(f'img_align_celeba/{number:06}.jpg', files[number % len(files)])


def matrix_product(precision, size=3072, seconds=4.0):
    """GFLOP/s of square matrix products."""
    with tf.Graph().as_default(), tf.Session() as session:
        a, b = (tf.Variable(tf.cast(tf.random_normal([size, size]), PRECISIONS[precision])) for _ in range(2))
        product = tf.matmul(a, b).op
        session.run(tf.global_variables_initializer())
        return 2e-9 * size**3 / statistics.median(timed(lambda: session.run(product), seconds))


def timed(call, seconds) -> list[float]:
    """The seconds that each call takes, for this many seconds after two calls to warm up."""
    call(), call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def published(batch, jpegs):
    """Training images per second of the published recipe. jpegs: an archive to decode from, or None."""
    if jpegs:
        batches = recipe.get_batches(zipfile.ZipFile(jpegs), batch)
    else:
        batches = itertools.repeat(np.random.default_rng(0).random((batch, 28, 28, 3)) - 0.5)
    steps = recipe.train(batches, batch, WARM_UP + STEPS[batch])
    for _ in range(WARM_UP):
        next(steps)
    times: list[float] = []
    while True:
        began = time.perf_counter()
        if next(steps, steps) is steps:
            return batch / statistics.median(times)
        times.append(time.perf_counter() - began)


def synthetic(count, image_size, folder: Path):
    """A memory-mapped array of random images."""
    path = folder / 'faces.npy'
    rng = np.random.default_rng(0)
    sizes = (min(512, count - start) for start in range(0, count, 512))
    blocks = (rng.integers(0, 256, (size, image_size, image_size, 3), np.uint8) for size in sizes)
    return save_prepared(path, (image_size, image_size, 3), blocks)


def ours(batch, precision='fp32', xla=False, image_size=28, images=IMAGES, steps=None):
    """Training images per second of `train.train`, by its log."""
    steps = WARM_UP + (steps or STEPS[batch])
    flags = f'--image-size {image_size} --batch-size {batch} --precision {precision} --steps {steps}'
    flags += f' --sample-every {steps} ' + ('--xla' if xla else '--no-xla')
    settings = choose_settings(parse_arguments(flags.split()))
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        faces = synthetic(images, image_size, Path(folder))
        with contextlib.redirect_stdout(nowhere):
            train.train(Run(settings, helper.Dataset(faces), Path(folder) / 'run'), Replica())
        with open(Path(folder) / 'run' / 'log.csv') as file:
            rates = [float(row['images_per_second']) for row in csv.DictReader(file)][WARM_UP:]
    return statistics.median(rates)


def waiting(batch, precision):
    """The time of a step with real batches relative to one with the same batch again, and sizes of the graph.

    Both take turns in one session. Then the number of operations in the graph after 1 grid and after 10.
    """
    settings = choose_settings(parse_arguments(f'--batch-size {batch} --precision {precision}'.split()))
    built = train.build_graph(settings, Replica())
    with tempfile.TemporaryDirectory() as folder, open_session(built.graph) as session:
        run = Run(settings, helper.Dataset(synthetic(IMAGES, 28, Path(folder))))
        session.run(built.initializer)
        one = SimpleNamespace(steps=1, max_steps=1)
        batches = train.prefetch(train.batches(run, 0, slice(None), one, stored=False))
        constant = next(batches)
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * (WARM_UP + STEPS[batch])):
            began = time.perf_counter()
            count, images, latents = next(batches) if number % 2 else constant
            feed = {built.count: count, built.batch: images, built.input_z: latents}
            session.run(built.losses, feed | {built.learning_rate: run.system.learning_rate})
            times[bool(number % 2)].append(time.perf_counter() - began)
        batches.close()
        real, same = (statistics.median(times[kind][WARM_UP:]) for kind in (True, False))
        counts = []
        for _ in range(10):
            train.show_generator_output(session, built, constant[2][:16], Path(folder) / 'grid.png')
            counts.append(len(built.graph.get_operations()))
    return {'ratio': real / same, 'operations': [counts[0], counts[-1]]}


def prepare(jpegs, cores):
    """Full-size JPEGs prepared per second."""
    available = mock.patch.object(os, 'sched_getaffinity', lambda _: range(cores), create=True)
    with tempfile.TemporaryDirectory() as folder, available:
        began = time.perf_counter()
        count = len(helper.load_faces(jpegs, 28, folder).faces)
        return count / (time.perf_counter() - began)


MEASUREMENTS = {
    function.__name__: function for function in (matrix_product, published, ours, waiting, prepare, write_jpegs)
}


# --- the parent


def run(command, **options):
    """Run a command: what it printed, the seconds it took and its peak memory, MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, **options)
    output = process.stdout.read()  # type: ignore[union-attr]  # it is a pipe
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'{command} failed')
    scale = 1 << 20 if sys.platform == 'darwin' else 1 << 10  # ru_maxrss is in bytes there, else in kilobytes
    return output, time.perf_counter() - began, usage.ru_maxrss / scale


def measure(what, **options):
    """Run one of MEASUREMENTS in a process of its own: its result and its peak memory, MB."""
    output, _, memory = run([__file__, '--measure', json.dumps([what, options])])
    return json.loads(output), memory


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next((line.split(': ')[1] for line in lines if line.startswith('model name')), model)
    return f'{model}, {os.cpu_count()} cores, TensorFlow {version("tensorflow")}, {datetime.date.today()}'


class Table:
    """Rows of figures, printed as Markdown and kept for a CSV file."""

    def __init__(self):
        self.rows = []

    def head(self, *columns):
        self.rows.append(columns)
        print('\n| ' + ' | '.join(columns) + ' |\n|' + ' --- |' * len(columns), flush=True)

    def row(self, *cells):
        self.rows.append(cells)
        print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)


def spread(values, form='{:.0f}') -> str:
    """The median of some values (minimum to maximum)."""
    return f'{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})'


def training(table: Table, rounds, jpegs):
    """The recipes in turn, and the limit. Ratios are medians of the ratios within a round."""
    kinds: dict = {
        'published, JPEGs decoded': ('published', {'jpegs': str(jpegs)}),
        'published, no JPEGs': ('published', {'jpegs': None}),
        **{f'ours, {precision}': ('ours', {'precision': precision}) for precision in PRECISIONS},
    }
    rates: dict = {(kind, batch): [] for batch in BATCHES for kind in kinds}
    products: dict = {(precision, batch): [] for batch in BATCHES for precision in PRECISIONS}
    memory = {}
    for number in range(rounds):
        for kind, batch in cli.progress(iterable=list(rates), desc=f'Training, round {number + 1}'):
            what, options = kinds[kind]
            rate, memory[kind, batch] = measure(what, batch=batch, **options)
            rates[kind, batch].append(rate)
            if what == 'ours':  # in the same minute as what it is compared with
                precision = options['precision']
                products[precision, batch].append(measure('matrix_product', precision=precision)[0])
    operations = step_operations(SYSTEMS['oreilly'])
    print(f'\nA step: {operations / 1e9:.2f} GFLOP per image.')
    for precision in PRECISIONS:
        rate = [value for batch in BATCHES for value in products[precision, batch]]
        limit = 1e9 * statistics.median(rate) / operations
        print(f'Matrix products, {precision}: {spread(rate)} GFLOP/s, so at most {limit:.0f} images/s.')
    others = 'published, JPEGs decoded', 'published, no JPEGs', 'ours, fp32'
    table.head('batch', 'training', 'images/s', *(f'/ {other}' for other in others), '/ limit', 'peak MB')
    for (kind, batch), rate in rates.items():
        limit = 1e9 * np.array(products['bf16' if 'bf16' in kind else 'fp32', batch]) / operations
        ratios = [np.median(np.divide(rate, other)) for other in (*(rates[other, batch] for other in others), limit)]
        table.row(batch, kind, spread(rate), *(f'{ratio:.2f}' for ratio in ratios), f'{memory[kind, batch]:.0f}')


def around(table: Table, rounds, jpegs):
    """Everything but the step."""
    waits = [measure('waiting', batch=64, precision=precision)[0] for _ in range(rounds) for precision in PRECISIONS]
    cores = os.cpu_count()
    alone, together, bare, faces, first, usage = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:

        def seconds(*command):
            return run(command, cwd=folder, stderr=subprocess.DEVNULL)[1]

        def one_step(name):
            return seconds(ROOT / 'train.py', '--data', jpegs, '--steps', 1, '--run-dir', name)

        one_step('preparation')
        for number in cli.progress(iterable=range(rounds), desc='The rest'):
            alone.append(measure('prepare', jpegs=str(jpegs), cores=1)[0])
            together.append(measure('prepare', jpegs=str(jpegs), cores=cores)[0])
            bare.append(seconds('-c', 'import tensorflow.compat.v1'))
            faces.append(seconds(ROOT / 'generate.py', '--out', f'faces-{number}'))
            first.append(one_step(f'run-{number}'))
            usage.append(seconds(ROOT / 'train.py', '--help'))
    table.head('what', 'median (minimum to maximum)')
    table.row(
        'step with real batches / with a constant batch, batch 64', spread([wait['ratio'] for wait in waits], '{:.3f}')
    )
    table.row('operations in the graph after 1 grid, after 10', ', '.join(map(str, waits[0]['operations'])))
    table.row('preparation of full-size JPEGs, 1 core, images/s', spread(alone))
    table.row(f'preparation of full-size JPEGs, {cores} cores, images/s', spread(together))
    table.row('`import tensorflow.compat.v1`, s', spread(bare, '{:.1f}'))
    table.row('`generate.py`, ten faces, s', spread(faces, '{:.1f}'))
    table.row('`generate.py` / import', spread(np.divide(faces, bare), '{:.2f}'))
    table.row('`train.py --steps 1`: one step, its grid, plot and checkpoint, s', spread(first, '{:.1f}'))
    table.row('`train.py --help`, s', spread(usage, '{:.2f}'))


def growth(table: Table, rounds):
    """The cost of a step as images, batches and the data set grow."""
    cases: list = [
        *({'image_size': 28, 'batch': batch} for batch in BATCHES),
        *({'image_size': size, 'batch': 16, 'steps': 12} for size in (64, 128)),
        {'image_size': 28, 'batch': 16, 'images': 10_000},
        {'image_size': 28, 'batch': 16, 'images': 202_599},
        {'image_size': 28, 'batch': 16, 'images': 10_000, 'steps': 600},
    ]
    results: list = [[] for _ in cases]
    for _ in range(rounds):
        for case, result in zip(cli.progress(iterable=cases, desc='Growth'), results, strict=True):
            result.append(measure('ours', **case))
    table.head(
        'image', 'batch', 'images in the data set', 'steps', 'GFLOP per image', 'ms per step', 'GFLOP/s', 'peak MB'
    )
    for case, result in zip(cases, results, strict=True):
        rate = statistics.median(rate for rate, _ in result)
        operations = step_operations(resized(SYSTEMS['oreilly'], case['image_size'], 3))
        table.row(
            case['image_size'],
            case['batch'],
            case.get('images', IMAGES),
            WARM_UP + case.get('steps', STEPS[case['batch']]),
            f'{operations / 1e9:.2f}',
            f'{1000 * case["batch"] / rate:.0f}',
            f'{rate * operations / 1e9:.0f}',
            f'{statistics.median(memory for _, memory in result):.0f}',
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--csv', type=Path, help='also write the rows to this file')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, options = json.loads(args.measure)
        print(json.dumps(MEASUREMENTS[what](**options)))
        return
    print(machine())
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        jpegs = Path(folder) / 'jpegs.zip'
        measure('write_jpegs', path=str(jpegs))
        training(table, args.rounds, jpegs)
        around(table, args.rounds, jpegs)
    growth(table, max(1, args.rounds // 2))
    if args.csv:
        with files.replacing(args.csv) as temporary, open(temporary, 'w', newline='') as file:
            csv.writer(file).writerows(table.rows)


if __name__ == '__main__':
    main()
