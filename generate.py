"""What can the trained generator draw?

python generate.py                        ten faces from the generator that comes with the project
python generate.py --count 1000 --seed 1 --out faces1000
python generate.py --checkpoint runs/NAME  from a training run of your own
"""

import contextlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import cli
import helper
import rundir
from settings import chosen_system
from systems import System

PRETRAINED = Path(__file__).parent / 'pretrained'
CHUNK = 64  # faces drawn at once, always, so that a face depends on nothing but its number and the seed
GRID_FACES = 64  # at most this many in the grid
GRID_SCALE = (3, 8)  # least, so that the labels have room, and most
LABEL_HEIGHT = 14  # pixels
DEMO_FACES = 8192


def draw_latents(system: System, rng, count) -> np.ndarray:
    """Latents float32 (count, latent_size) from the system's distribution."""
    shape = count, system.latent_size
    latents = rng.standard_normal(shape) if system.latent == 'normal' else rng.uniform(-1, 1, shape)
    return latents.astype(np.float32)


def session_config():
    """A ConfigProto of sessions that take GPU memory as they need it."""
    import dcgan

    config = dcgan.tf.ConfigProto()
    config.gpu_options.allow_growth = True
    # TensorFlow 2.18 to 2.20 log an error when they try to make one operation of a bias and a leaky ReLU.
    config.graph_options.rewrite_options.remapping = config.graph_options.rewrite_options.OFF
    return config


def open_session(graph=None):
    """A session on this process's devices."""
    import dcgan

    return dcgan.tf.Session(graph=graph, config=session_config())


@contextlib.contextmanager
def restored_generator(checkpoint):
    """Yield (run, system, session, z, faces): what run.json says, and the generator with its trained weights.

    Those are the moving averages where the checkpoint has them. faces is -1..1. Raises UserError.
    """
    run_dir, prefix = rundir.find_checkpoint(checkpoint)
    run = rundir.read_run(run_dir)
    import dcgan

    tf = dcgan.tf
    system = chosen_system(run['settings'])._replace(precision='fp32')
    with tf.Graph().as_default():
        z = tf.placeholder(tf.float32, [None, system.latent_size], 'input_z')
        faces = dcgan.generator(system, z, training=False)
        with open_session() as session:
            try:
                saved = tf.train.load_checkpoint(str(prefix))
                variables = {}
                for variable in tf.global_variables():
                    average = f'{variable.op.name}/ExponentialMovingAverage'
                    variables[average if saved.has_tensor(average) else variable.op.name] = variable
                tf.train.Saver(variables).restore(session, str(prefix))
            except (tf.errors.OpError, ValueError, RuntimeError):
                raise cli.UserError(f'{prefix} is damaged, or not a checkpoint of this system') from None
            yield run, system, session, z, faces


def draw_faces(checkpoint, count, seed):
    """Yield `count` faces in chunks, uint8 (n, H, W, 3). Face number i depends on `seed` and i alone."""
    with restored_generator(checkpoint) as (_, system, session, z, faces):
        rng = np.random.default_rng(seed)
        for start in range(0, count, CHUNK):
            images = session.run(faces, {z: draw_latents(system, rng, CHUNK)})
            yield helper.to_uint8(images[: count - start], (-1, 1))


def load_demo(data_dir, size) -> np.ndarray:
    """The demo data set: DEMO_FACES faces drawn by the generator that comes with the project, no photographs.

    uint8 (N, size, size, 3), memory-mapped from a file in `data_dir`, which is made the first time. The
    generator's faces are 28x28, and scaled where another `size` is asked for.
    """
    prepared = Path(data_dir) / f'demo-{size}-{helper.fingerprint(PRETRAINED, DEMO_FACES)}.npy'
    faces = helper.open_faces(prepared, size)
    if faces is None:
        chunks = helper.progress(
            iterable=draw_faces(PRETRAINED, DEMO_FACES, seed=0),
            desc='Drawing the demo faces',
            total=math.ceil(DEMO_FACES / CHUNK),
            unit=' chunks',
        )
        helper.save_faces(prepared, size, DEMO_FACES, (resized(faces, size) for faces in chunks))
        faces = helper.open_faces(prepared, size)
    return faces


def resized(faces: np.ndarray, size) -> np.ndarray:
    """`faces` (N, H, W, 3) scaled to (N, size, size, 3)."""
    return np.array([Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC) for face in faces])


def export_generator(checkpoint, out: Path):
    """Write the generator's sampling weights alone, as a run directory that holds nothing else."""
    import dcgan

    if out.exists():
        raise cli.UserError(f'{out} is there already: name another folder')
    with restored_generator(checkpoint) as (run, _, session, _, _):
        (out / 'checkpoints').mkdir(parents=True)
        name = out / 'checkpoints' / rundir.find_checkpoint(checkpoint)[1].name
        try:
            dcgan.tf.train.Saver().save(session, str(name), write_meta_graph=False, write_state=False)
        except dcgan.tf.errors.OpError as error:
            raise cli.UserError(f'{out} cannot be written: {error.message.splitlines()[0]}') from None
    for name in ('data', 'data_dir'):  # where they are is nobody else's concern
        run['settings'][name] = Path(str(run['settings'].get(name, ''))).name
    (out / 'run.json').write_text(json.dumps(run, indent=2) + '\n')


def enlarge(face: np.ndarray, scale) -> Image.Image:
    """`face` (H, W, 3) with each pixel a square of `scale` x `scale`."""
    return ImageOps.scale(Image.fromarray(face), scale, Image.Resampling.NEAREST)


def label(face: np.ndarray, number, scale) -> np.ndarray:
    """`face` (H, W, 3) enlarged, with its number below."""
    height, width, _ = face.shape
    labelled = Image.new('RGB', (width * scale, height * scale + LABEL_HEIGHT))
    labelled.paste(enlarge(face, scale))
    ImageDraw.Draw(labelled).text((2, height * scale + 1), str(number), fill='white')
    return np.asarray(labelled)


def parse_arguments():
    parser = cli.Parser('Draw faces with a trained generator.')
    add = parser.add_argument
    add('--count', type=cli.number(int, 1, 10_000_000), default=10, help='how many faces (10)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed, other faces (0)')
    add('--out', type=cli.path, help='folder for the PNG files (faces, or faces-2, ... if that is there)')
    add('--scale', type=cli.number(int, 1, 64), default=1, help='enlarge each pixel so many times (1)')
    add('--checkpoint', type=cli.path, default=PRETRAINED, help='a run directory or a checkpoint in it (pretrained)')
    add('--export', type=cli.path, metavar='DIR', help='draw nothing: write the generator alone into this folder')
    args = parser.parse_args()
    for name in ('count', 'seed', 'out', 'scale'):
        if args.export and getattr(args, name) != parser.get_default(name):
            parser.error(f'--{name} is about drawing: --export draws nothing')
    return args


def main():
    args = parse_arguments()
    if args.export:
        export_generator(args.checkpoint, args.export)
        print(f'The generator: {args.export}')
        return
    out = args.out or rundir.unused(Path('faces'))
    if rundir.holds_something(out):
        raise cli.UserError(f'{out} is not empty: name another folder with --out')
    faces = itertools.chain.from_iterable(draw_faces(args.checkpoint, args.count, args.seed))
    in_grid = []
    for number, face in enumerate(helper.progress(iterable=faces, total=args.count, unit=' faces')):
        if number == 0:  # not before: a checkpoint that cannot be used leaves no folder
            out.mkdir(parents=True, exist_ok=True)
        enlarge(face, args.scale).save(out / f'face-{number:05}.png')
        if number < GRID_FACES:
            in_grid.append(label(face, number, min(max(args.scale, GRID_SCALE[0]), GRID_SCALE[1])))
    helper.images_square_grid(in_grid).save(out / 'grid.png')
    print(f'{args.count} faces: {out}/face-*.png\nSide by side: {out / "grid.png"}')


if __name__ == '__main__':
    cli.run(main)
