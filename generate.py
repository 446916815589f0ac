"""What can the trained generator draw?

python generate.py                        ten faces from the generator that comes with the project
python generate.py --count 1000 --seed 1 --out faces1000
python generate.py --interpolate 5         a walk from face to face
python generate.py --checkpoint runs/NAME  from a training run of your own
"""

import contextlib
import itertools
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import cli
import helper
import rundir
import show
from settings import chosen_system
from systems import SYSTEMS, System

PRETRAINED = Path(__file__).parent / 'pretrained'
PIXELS_AT_ONCE = 64 * 28 * 28  # what is drawn in one go; a whole 128x128 network is slow and large
GRID_FACES = 64  # at most this many in the grid
GRID_SCALE = (3, 8)  # least, so that the labels have room, and most
LABEL_HEIGHT = 14  # pixels
LEG_FRAMES = 10  # of a walk, from one face to just before the next
FRAME_MILLISECONDS = 80
DEMO_FACES = 8192


def draw_latents(system: System, rng, count, truncate=1.0) -> np.ndarray:
    """Latents float32 (count, latent_size) from the system's distribution, U(-1, 1) or N(0, 1), times `truncate`.

    Below 1, U(-t, t) or N(0, t^2), faces are more typical and less varied, and paler the closer it is to 0. Scaling,
    as Karras et al. (2019, arXiv:1812.04948) do, keeps who is drawn; the truncation of Brock et al. (2019,
    arXiv:1809.11096) draws the numbers that are too large anew.
    """
    shape = count, system.latent_size
    latents = rng.standard_normal(shape) if system.latent == 'normal' else rng.uniform(-1, 1, shape)
    return (latents * truncate).astype(np.float32)


def straight(start, end, t) -> np.ndarray:
    """The points (n, latent_size) at `t` (n,), 0 to 1, of the straight line between two latents (latent_size,)."""
    return np.outer(1 - t, start) + np.outer(t, end)


def slerp(start, end, t) -> np.ndarray:
    """`straight`, but along the great circle: spherical linear interpolation (Shoemake, 1985).

    Normal latents lie near a sphere, and a straight line would pass through its inside, where there are next to
    none (White, 2016, arXiv:1609.04468). Of parallel and opposite latents, and of zeros, it is the straight line.
    """
    lengths = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(np.dot(start, end) / lengths, -1, 1)) if lengths else 0
    if np.sin(angle) < 1e-6:
        return straight(start, end, t)
    return (np.outer(np.sin((1 - t) * angle), start) + np.outer(np.sin(t * angle), end)) / np.sin(angle)


def walk(latents, between) -> np.ndarray:
    """Latents float32 (N * LEG_FRAMES, latent_size) from each of N to the next, and from the last to the first.

    between: `straight` or `slerp`. Number i of `latents` is number i * LEG_FRAMES of the walk.
    """
    t = np.arange(LEG_FRAMES) / LEG_FRAMES
    latents = latents.astype(np.float64)
    legs = [between(start, end, t) for start, end in zip(latents, np.roll(latents, -1, axis=0), strict=True)]
    return np.concatenate(legs).astype(np.float32)


@contextlib.contextmanager
def restored_generator(checkpoint):
    """Yield (run, system, session, z, faces): what run.json says, and the generator with its trained weights.

    Those are the moving averages where the checkpoint has them. faces is -1..1. Raises UserError.
    """
    run_dir, prefix = rundir.find_checkpoint(checkpoint)
    run = rundir.read_run(run_dir)
    import dcgan
    from runtime import open_session, tf

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


def draw(session, z, faces, latents):
    """Yield the faces of an iterable of latents (latent_size,), in chunks, uint8 (n, H, W, 3).

    As many are drawn at once whatever the count, so that a face depends on nothing but its latent.
    """
    latents = iter(latents)
    at_once = max(1, PIXELS_AT_ONCE // faces.shape[1] ** 2)
    while chunk := list(itertools.islice(latents, at_once)):
        images = session.run(faces, {z: np.resize(chunk, (at_once, z.shape[1]))})
        yield helper.to_uint8(images[: len(chunk)], (-1, 1))


def with_progress(chunks, count):
    """Yield chunks of faces, `count` in all, and show how far it is."""
    with helper.progress(desc='Drawing', total=count, unit=' faces') as bar:
        for chunk in chunks:
            bar.update(len(chunk))
            yield chunk


def draw_faces(checkpoint, count, seed, truncate=1.0):
    """Yield `count` faces in chunks, uint8 (n, H, W, 3). Face number i depends on `seed`, `truncate` and i alone."""
    with restored_generator(checkpoint) as (_, system, session, z, faces):
        rng = np.random.default_rng(seed)
        latents = (draw_latents(system, rng, 1, truncate)[0] for _ in range(count))
        yield from with_progress(draw(session, z, faces, latents), count)


def draw_walk(checkpoint, stops, seed, truncate=1.0, scale=1) -> np.ndarray:
    """The frames of a walk through the first `stops` faces of `seed` and back to the first.

    uint8 (stops * LEG_FRAMES, H * scale, W * scale, 3), the last the one before the first. Raises UserError where
    they are more pixels than a strip should have.
    """
    with restored_generator(checkpoint) as (_, system, session, z, faces):
        if stops * (LEG_FRAMES + 1) * (system.image_size * scale) ** 2 > helper.MOST_PIXELS:
            raise cli.UserError(
                f'the strip would have more than {helper.MOST_PIXELS} pixels: lower --interpolate or --scale'
            )
        latents = draw_latents(system, np.random.default_rng(seed), stops, truncate)
        latents = walk(latents, slerp if system.latent == 'normal' else straight)
        frames = np.concatenate(list(with_progress(draw(session, z, faces, latents), len(latents))))
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def load_data(settings, sources=None) -> np.ndarray:
    """The faces that --data names, uint8 (N, H, W, 3)."""
    data_dir = Path(settings['data_dir'])
    size, prepared = SYSTEMS[settings['system']].image_size, data_dir / 'prepared'
    source = settings['data']
    if source == 'demo':
        print('The demo faces are drawn by the pretrained generator; none is a photograph.')
        return load_demo(prepared, size)
    if source == 'celeba':
        try:
            source = helper.download_celeb_a(data_dir, sources or helper.CELEB_A_SOURCES)
        except helper.DataError as error:
            raise cli.UserError(f'{error}. Without it: --data demo, or --data PATH for pictures of your own') from None
    return helper.load_faces(source, size, prepared, settings['crop'])


def load_demo(data_dir, size) -> np.ndarray:
    """The demo data set: DEMO_FACES faces drawn by the generator that comes with the project, no photographs.

    uint8 (N, size, size, 3), memory-mapped from a file in `data_dir`, which is made the first time. The
    generator's faces are 28x28, and scaled where another `size` is asked for.
    """
    prepared = Path(data_dir) / f'demo-{size}-{helper.fingerprint(PRETRAINED, DEMO_FACES)}.npy'
    faces = helper.open_faces(prepared, size)
    if faces is None:
        chunks = draw_faces(PRETRAINED, DEMO_FACES, seed=0)
        helper.save_faces(prepared, size, DEMO_FACES, (resized(chunk, size) for chunk in chunks))
        faces = helper.open_faces(prepared, size)
    return faces


def resized(faces: np.ndarray, size) -> np.ndarray:
    """`faces` (N, H, W, 3) scaled to (N, size, size, 3)."""
    return np.array([Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC) for face in faces])


def export_generator(checkpoint, out: Path):
    """Write the generator's sampling weights alone, as a run directory that holds nothing else.

    It appears when whole. Raises UserError, and OSError.
    """
    from runtime import tf

    if out.exists():
        raise cli.UserError(f'{out} is there already: name another folder')
    with restored_generator(checkpoint) as (run, _, session, _, _), helper.naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix='.') as folder:
            whole = Path(folder) / out.name
            (whole / 'checkpoints').mkdir(parents=True)
            name = whole / 'checkpoints' / rundir.find_checkpoint(checkpoint)[1].name
            try:
                tf.train.Saver().save(session, str(name), write_meta_graph=False, write_state=False)
            except tf.errors.OpError:  # its first line says nothing
                raise cli.UserError(f'{out} cannot be written, a full disk perhaps') from None
            for name in ('data', 'data_dir'):  # where they are is nobody else's concern
                run['settings'][name] = Path(str(run['settings'].get(name, ''))).name
            (whole / 'run.json').write_text(json.dumps(run, indent=2) + '\n')
            whole.rename(out)


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


def write_npz(path: Path, faces, shape):
    """Write faces as one uint8 array of `shape` (N, H, W, 3), never holding them all; the file appears when whole.

    It is named `arr_0`, as by np.savez; the evaluator of Dhariwal and Nichol (2021, arXiv:2105.05233) reads that.
    """
    header = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
    with (
        helper.replacing(path) as temporary,
        zipfile.ZipFile(temporary, 'w') as archive,
        archive.open('arr_0.npy', 'w', force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for face in faces:
            file.write(face.tobytes())


def write_faces(args, out: Path):
    """Draw single faces and a grid of the first into the folder `out`, and say where they are.

    Those in PNG files get a folder with nothing else in it, as tools that measure the FID take it.
    """
    faces = itertools.chain.from_iterable(draw_faces(args.checkpoint, args.count, args.seed, args.truncate))
    first = list(itertools.islice(faces, GRID_FACES))
    faces = itertools.chain(first, faces)
    out.mkdir(parents=True, exist_ok=True)  # not before: a checkpoint that cannot be used leaves no folder
    scale = min(max(args.scale, GRID_SCALE[0]), GRID_SCALE[1])
    labelled = [label(face, number, scale) for number, face in enumerate(first)]
    helper.images_square_grid(labelled).save(out / 'grid.png')
    if args.format == 'npz':
        where = out / 'faces.npz'
        write_npz(where, faces, (args.count, *first[0].shape))
    else:
        where = out / 'images' / 'face-*.png'
        where.parent.mkdir()
        for number, face in enumerate(faces):
            enlarge(face, args.scale).save(where.with_name(f'face-{number:05}.png'))
    print(f'{args.count} faces: {where}\nSide by side: {out / "grid.png"}')


def write_walk(args, out: Path):
    """Draw a walk from face to face, as a strip with a row a leg and as a GIF, into `out`, and say where they are."""
    frames = draw_walk(args.checkpoint, args.interpolate, args.seed, args.truncate, args.scale)
    out.mkdir(parents=True, exist_ok=True)
    count, height, width, _ = frames.shape
    legs = frames.reshape(-1, LEG_FRAMES, height, width, 3)
    legs = np.concatenate([legs, np.roll(legs[:, :1], -1, axis=0)], axis=1)  # and where each leads
    strip = legs.swapaxes(1, 2).reshape(len(legs) * height, -1, 3)
    Image.fromarray(strip).save(out / 'strip.png')
    show.save_gif([Image.fromarray(frame) for frame in frames], out / 'walk.gif', FRAME_MILLISECONDS)
    print(f'A walk through {len(legs)} faces: {out / "walk.gif"}\nStep by step: {out / "strip.png"}')


def parse_arguments():
    parser = cli.Parser('Draw faces with a trained generator.')
    add = parser.add_argument
    add('--count', type=cli.number(int, 1, 10_000_000), default=10, help='how many faces (10)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed, other faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, above=True), default=1.0, help='below 1: more typical, less varied')
    add('--out', type=cli.path, help='folder for what is drawn (faces, or faces-2, ... if that is there)')
    add('--format', choices=('png', 'npz'), default='png', help='a file a face, or one array for all (png)')
    add('--scale', type=cli.number(int, 1, 64), default=1, help='enlarge each pixel so many times (1)')
    add('--interpolate', type=cli.number(int, 2, 1000), metavar='N', help='a walk through the first N faces instead')
    add('--checkpoint', type=cli.path, default=PRETRAINED, help='a run directory or a checkpoint in it (pretrained)')
    add('--export', type=cli.path, metavar='DIR', help='draw nothing: write the generator alone into this folder')
    args = parser.parse_args()
    without_use = {
        '--export': args.export and ('count', 'seed', 'truncate', 'out', 'format', 'scale', 'interpolate'),
        '--interpolate': args.interpolate and ('count', 'format'),
        '--format npz': args.format == 'npz' and ('scale',),
    }
    for flag, names in without_use.items():
        for name in names or ():
            if getattr(args, name) != parser.get_default(name):
                parser.error(f'--{name} has no use with {flag}: leave one of them out')
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
    with helper.naming(out):
        (write_walk if args.interpolate else write_faces)(args, out)


if __name__ == '__main__':
    cli.run(main)
