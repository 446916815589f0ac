"""The page, in Chromium where there is one: the faces that it draws, and what can be done with it."""

import base64
import contextlib
import hashlib
import io
import json
import math
import re
import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_command
from PIL import Image

import dcgan
from common.cli import UserError
from config.settings import widened
from config.sizes import resized
from export.page import TEMPLATE, export_page, generator_data, to_float16, write_page
from graph.session import open_session, tf
from rundir.checkpoints import Checkpoint
from rundir.run_json import read_run, system_of_run
from sampling.generator import PRETRAINED, Generator, draw_faces
from sampling.latents import interpolate, sample_latents
from systems import SYSTEMS, Layer

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
KINDS = 'oreilly', 'sharma', 'kdnuggets', 'ranjan'  # the others have the networks of one of these
WAIT = 30_000  # for what the page does, milliseconds


def narrow(name, width=1 / 32):
    """One of the SYSTEMS with few channels."""
    *layers, last = SYSTEMS[name].generator
    return replace(SYSTEMS[name], generator=(*(widened(layer, width) for layer in layers), last))


MIXED = replace(
    SYSTEMS['oreilly'],
    image_size=20,
    latent_size=7,
    latent='normal',
    attributes=('Smiling', 'Wearing_Hat'),
    combinations=('00', '10', '11'),
    generator=(  # every kind of layer, with batch normalisation and without
        Layer('dense', (3, 3, 6), batch_norm=True, activation='relu'),
        Layer('conv2d', 5, kernel=2),
        Layer('conv2d_transpose', 4, kernel=4, stride=2, batch_norm=True),
        Layer('conv2d', 6, kernel=3, padding='VALID', batch_norm=True),
        Layer('conv2d_transpose', 5, kernel=4, stride=2, padding='VALID'),
        Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
    ),
)


GREY = resized(narrow('oreilly'), '40x24', 1)  # and not square


@contextlib.contextmanager
def random_generator(system):
    """Yield a Generator with random weights and statistics, which draws pictures with much contrast."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), open_session() as session:
        z = tf.placeholder(tf.float32, [None, system.z_dim])
        images = dcgan.generator(system, z, training=False)
        values = {}
        for variable in tf.global_variables():
            value, name = rng.standard_normal(variable.shape), variable.op.name.split('/')[-1]
            if name == 'kernel':  # keeps the scale of its input, about (He et al., 2015)
                transposed = 'conv2d_transpose' in variable.op.name
                inputs = math.prod(value.shape[:2]) * value.shape[3] / 4 if transposed else math.prod(value.shape[:-1])
                value *= math.sqrt(2 / inputs)
            elif name in ('gamma', 'moving_variance'):
                value = np.exp(value / 2)
            values[variable.initial_value] = value
        session.run(tf.global_variables_initializer(), values)
        yield Generator(Checkpoint(0, Path('random-0')), system, session, z, images)


def random_latents(generator, count):
    return sample_latents(generator.system, np.random.default_rng(1), count)


def uint8_faces(generator, latents):
    return np.concatenate(list(generator.draw(latents, len(latents)))).astype(int)


# --- files


def decoded(layer, name):
    """The numbers of a layer in weights.js."""
    return np.frombuffer(base64.b64decode(layer[name]), '<f2').reshape(layer[f'{name}Shape']).astype(np.float64)


def correlate(x, kernels, stride):
    """Convolution without padding of (N, H, W, C) with (k, k, C, D)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernels.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum('nhwcij,ijcd->nhwd', windows, kernels)


def pad_to(x, side):
    """Images padded with zeros, or cut, to a side: half of it, rounded down, in front, as TensorFlow does."""
    before = (side - x.shape[1]) // 2
    after = side - x.shape[1] - before
    return np.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])


def numpy_images(data, latents):
    """The images, -1..1, of latents (N, L) by what weights.js says."""
    x = latents
    for layer in data['layers']:
        kernel, stride = decoded(layer, 'kernel'), layer['stride']
        if layer['kind'] == 'dense':
            x = (x @ kernel).reshape(-1, *layer['output'])
        elif layer['kind'] == 'conv2d':
            x = pad_to(x, x.shape[1] + len(kernel) - 1) if layer['padding'] == 'same' else x
            x = correlate(x, kernel, stride)
        else:  # spread out, then the convolution with the mirrored kernels
            spread = np.zeros((len(x), (x.shape[1] - 1) * stride + 1, (x.shape[1] - 1) * stride + 1, x.shape[3]))
            spread[:, ::stride, ::stride] = x
            whole = pad_to(spread, spread.shape[1] + 2 * (len(kernel) - 1))
            side = x.shape[1] * stride
            x = correlate(whole, kernel[::-1, ::-1].swapaxes(2, 3), 1)
            if layer['padding'] == 'same':
                before = (x.shape[1] - side) // 2
                x = x[:, before : before + side, before : before + side]
        x = x + decoded(layer, 'bias')
        slope = {'relu': 0, 'leaky_relu': data['leakySlope']}
        x = np.tanh(x) if layer['activation'] == 'tanh' else np.maximum(x, x * slope[layer['activation']])
    return x


def test_the_weights_of_a_page_draw_the_faces_of_its_generator():
    with random_generator(MIXED) as generator:
        latents = random_latents(generator, 6)
        faces = uint8_faces(generator, latents)
        data = json.loads(json.dumps(generator_data(generator)))
    assert faces.std() > 30
    np.testing.assert_allclose((numpy_images(data, latents) + 1) * 127.5, faces, atol=2)


def test_weights_that_half_precision_cannot_hold_are_an_error():
    to_float16(np.array([65504.0]))
    for value in (1e5, math.inf, math.nan):
        with pytest.raises(UserError, match='65504'):
            to_float16(np.array([0, value], np.float32))


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    """The page of the pretrained generator."""
    folder = tmp_path_factory.mktemp('shipped')
    result = run_command('generate.py', '--page', 'new/page', cwd=folder)
    assert (result.returncode, result.stderr) == (0, '') and 'new/page/index.html' in result.stdout
    return folder / 'new' / 'page'


def test_a_page_is_a_folder_of_its_files_alone(shipped):
    assert [path.name for path in shipped.parent.iterdir()] == ['page']
    names = {path.name for path in shipped.iterdir()}
    assert names == {path.name for path in TEMPLATE.iterdir()} | {'weights.js'}
    linked = re.findall(r'(?:src|href)="([^"#:]+)"', (shipped / 'index.html').read_text())
    assert names == {*linked, 'index.html'}
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 13 * 2**20


def test_a_page_asks_no_other_host(shipped):
    for name in ('index.html', 'style.css', 'generator.js', 'page.js', 'weights.js'):
        assert '://' not in (shipped / name).read_text()


def test_tensorflow_js_is_the_file_that_the_page_names(shipped):
    (expected,) = re.findall('sha384-(.*)', (TEMPLATE / 'index.html').read_text())
    digest = hashlib.sha384((shipped / 'tf.es2017.min.js').read_bytes()).digest()
    assert base64.b64encode(digest).decode() == expected


def test_a_page_overwrites_nothing_and_appears_only_when_it_is_complete(tmp_path):
    with pytest.raises(UserError, match=f'{tmp_path} already exists'):
        export_page(PRETRAINED, tmp_path)
    with pytest.raises(UserError, match='no such run directory'):
        export_page(tmp_path / 'missing', tmp_path / 'new' / 'page')
    assert list(tmp_path.iterdir()) == []


# --- in a browser


@pytest.fixture(scope='module')
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip('there is no Chromium')
    playwright = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function that opens the page in a folder, or at an address, in a window of its own; errors fail the test."""
    with contextlib.ExitStack() as stack:
        errors = []

        def open_page(place, fragment='', **options):
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(WAIT)
            page.on('pageerror', lambda error: errors.append(str(error)))
            page.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
            page.goto(place if isinstance(place, str) else f'{place.as_uri()}/index.html{fragment}')
            return page

        yield open_page
    assert errors == []


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The page of a small generator with attributes."""
    folder = tmp_path_factory.mktemp('small') / 'page'
    with random_generator(MIXED) as generator:
        write_page(generator, folder)
    return folder


def wait_for_faces(page):
    page.get_by_text('16 faces', exact=True).wait_for()


def grid_faces(page):
    """The faces in the grid, int (16, H, W, 3)."""
    wait_for_faces(page)
    return canvases(page, '#grid canvas')


def face_button(page, number):
    return page.get_by_role('button', name=f'Face {number}', exact=True)


def canvases(page, selector):
    values = page.evaluate(
        """selector => [...document.querySelectorAll(selector)].map(canvas =>
            [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data])""",
        selector,
    )
    side = math.isqrt(len(values[0]) // 4)
    images = np.array(values).reshape(-1, side, side, 4)
    assert (images[..., 3] == 255).all()
    return images[..., :3]


def drawn(page, latents, gpu=False):
    """The faces that the page draws of latents, int (N, H, W, 3), on the CPU or by WebGL."""
    values = page.evaluate(
        """async ([latents, gpu]) => {
            await loading;
            hasGpu = () => gpu;
            loading = loadLayers();
            const faces = [];
            for (const latent of latents) faces.push([...(await drawFace(latent)).data]);
            return [tf.getBackend(), GENERATOR.height, faces];
        }""",
        [latents.tolist(), gpu],
    )
    backend, height, faces = values
    assert backend == ('webgl' if gpu else 'cpu')
    return np.reshape(faces, (len(faces), height, -1, 4))[..., :3]


@pytest.mark.parametrize('gpu', [False, True])
def test_the_page_draws_the_faces_of_generate_py(open_page, shipped, gpu):
    page = open_page(shipped)
    if gpu and not page.evaluate('Boolean(document.createElement("canvas").getContext("webgl2"))'):
        pytest.skip('this browser has no WebGL')
    latents = sample_latents(system_of_run(read_run(PRETRAINED)), np.random.default_rng(0), 6)
    faces = np.concatenate(list(draw_faces(PRETRAINED, 6, 0)))
    np.testing.assert_allclose(drawn(page, latents, gpu), faces.astype(int), atol=2)


@pytest.mark.parametrize('system', [MIXED, GREY, *map(narrow, KINDS)], ids=['mixed', 'grey', *KINDS])
def test_the_page_draws_the_faces_of_every_system(open_page, tmp_path, system):
    with random_generator(system) as generator:
        write_page(generator, tmp_path / 'page')
        latents = random_latents(generator, 2)
        faces = uint8_faces(generator, latents)
    assert faces.std() > 30
    in_colour = faces.repeat(3 // faces.shape[3], axis=3)
    np.testing.assert_allclose(drawn(open_page(tmp_path / 'page'), latents), in_colour, atol=2)


def test_a_web_server_serves_the_page(open_page, shipped):
    handler = partial(SimpleHTTPRequestHandler, directory=shipped)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        faces = grid_faces(open_page(f'http://127.0.0.1:{server.server_port}/'))
        server.shutdown()
    assert faces.shape == (16, 28, 28, 3) and faces.std(axis=0).mean() > 30
    skin = faces[:, 10:20, 10:18].mean(axis=(0, 1, 2))
    assert skin[0] > skin[1] > skin[2]


def test_every_refresh_draws_new_faces_and_a_link_the_same_ones(open_page, small):
    page = open_page(small)
    first = grid_faces(page)
    page.reload()
    second = grid_faces(page)
    assert (first != second).any(axis=(1, 2, 3)).all()
    page.get_by_role('link', name='Link to these faces').click()
    wait_for_faces(page)
    page.reload()
    np.testing.assert_array_equal(grid_faces(page), second)
    page.get_by_role('button', name='New faces').click()
    assert (grid_faces(page) != second).any(axis=(1, 2, 3)).all() and '#' not in page.url


@pytest.mark.parametrize('latent', ['uniform', 'normal'])
def test_latents_have_the_distribution_of_the_system(open_page, small, latent):
    page = open_page(small)
    latents = np.array(
        page.evaluate(
            """latent => {
                GENERATOR.latent = latent;
                const random = randomNumbers(3);
                return Array.from({ length: 3000 }, () => sampleLatent(random));
            }""",
            latent,
        )
    ).ravel()
    assert len(latents) == 3000 * 7
    expected = sample_latents(replace(SYSTEMS['oreilly'], latent=latent), np.random.default_rng(0), 1000)
    at = np.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(np.quantile(latents, at), np.quantile(expected, at), atol=0.06)


@pytest.mark.parametrize('latent', ['uniform', 'normal'])
def test_a_walk_is_the_interpolation_of_generate_py(open_page, small, latent):
    page = open_page(small)
    ends = sample_latents(MIXED, np.random.default_rng(1), 2)
    path = page.evaluate(
        """([latent, start, end]) => {
            GENERATOR.latent = latent;
            return Array.from({ length: 10 }, (_, i) => interpolate(start, end, i / 10));
        }""",
        [latent, *ends.tolist()],
    )
    np.testing.assert_allclose(path, interpolate(replace(MIXED, latent=latent), ends)[:10], atol=1e-6)


def test_two_chosen_faces_are_the_ends_of_a_walk(open_page, small):
    page = open_page(small)
    faces = grid_faces(page)
    face_button(page, 3).click()
    page.get_by_role('img', name='Face 3').wait_for()
    face_button(page, 8).click()
    page.get_by_text('A walk between face 3 and face 8').wait_for()
    page.wait_for_function('position.value === "3"')  # it moves by itself
    page.get_by_role('button', name='Pause').click()
    slider = page.get_by_role('slider', name='Position between the two faces')
    for key, index in ('Home', 2), ('End', 7):
        slider.press(key)
        page.wait_for_function('frames[position.value]')
        np.testing.assert_array_equal(canvases(page, '#large'), faces[index : index + 1])
    face_button(page, 5).click()  # in place of the first
    page.get_by_text('A walk between face 8 and face 5').wait_for()
    assert page.locator('#grid [aria-pressed=true]').count() == 2
    face_button(page, 8).click()  # no longer
    page.get_by_role('img', name='Face 5').wait_for()


def test_truncation_makes_the_same_faces_more_typical(open_page, small):
    page = open_page(small, '#7')
    whole = grid_faces(page)
    page.get_by_role('slider', name='Truncation').fill('0.5')
    page.get_by_text('0.50').wait_for()
    half = grid_faces(page)
    assert half.std(axis=0).mean() < 0.9 * whole.std(axis=0).mean()
    assert page.evaluate('currentLatent({ latent: [2, -4], u: 0 }).slice(0, 2)') == [1, -2]


def test_switches_decide_the_attributes_and_others_are_as_they_occur_together(open_page, small):
    page = open_page(small)

    def answer(name, text):
        page.get_by_role('group', name=name).get_by_text(text, exact=True).click()
        return [tuple(condition) for condition in page.evaluate('faces.map((face) => currentLatent(face).slice(7))')]

    as_drawn = answer('Smiling', 'any')
    assert set(as_drawn) <= {(-1, -1), (1, -1), (1, 1)}
    assert set(answer('Wearing Hat', 'yes')) == {(1, 1)}  # nobody wears one without a smile,
    assert set(answer('Smiling', 'no')) == {(-1, 1)}  # unless that is what is wanted
    assert set(answer('Wearing Hat', 'no')) == {(-1, -1)}
    answer('Smiling', 'any')
    assert answer('Wearing Hat', 'any') == as_drawn
    assert page.evaluate('[0, 0.4, 0.99].map((u) => conditionOf(u, ["", ""]))') == [[-1, -1], [1, -1], [1, 1]]


def test_faces_can_be_downloaded_as_png_files(open_page, small):
    page = open_page(small)
    faces = grid_faces(page)
    face_button(page, 2).click()
    page.wait_for_function('frames[0]')
    for button, name, columns in ('Download all', 'faces.png', 4), ('Download this face', 'face.png', 1):
        with page.expect_download() as download:
            page.get_by_role('button', name=button).click()
        assert download.value.suggested_filename == name
        image = np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes())).convert('RGB'))
        side = image.shape[0] // columns
        assert image.shape == (side * columns, side * columns, 3) and side >= 256
        scale = side // 20
        expected = faces if columns > 1 else faces[1:2]
        for index, face in enumerate(expected):
            row, column = divmod(index, columns)
            part = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
            np.testing.assert_array_equal(part, face.repeat(scale, axis=0).repeat(scale, axis=1))


def test_the_keyboard_is_enough(open_page, small):
    page = open_page(small)
    wait_for_faces(page)

    def names_on_the_way(count):
        """The accessible names of what the Tab key leads to."""
        for _ in range(count):
            page.keyboard.press('Tab')
            yield page.evaluate(
                """() => {
                    const { ariaLabel, textContent, parentElement } = document.activeElement;
                    const around = parentElement.closest('fieldset') ?? parentElement.closest('label');
                    return ariaLabel ?? (around?.firstChild.textContent.trim() || textContent);
                }"""
            )

    assert list(names_on_the_way(4)) == ['New faces', 'Truncation', 'Smiling', 'Wearing Hat']
    for number, name in enumerate(names_on_the_way(16), 1):
        assert name == f'Face {number}'
        if number in (4, 9):
            page.keyboard.press('Space')
    page.get_by_text('A walk between face 4 and face 9').wait_for()
    assert list(names_on_the_way(5)) == [
        'Link to these faces', 'Download all', 'Pause', 'Position between the two faces', 'Download this face',
    ]  # fmt: skip


def test_a_walk_stands_still_for_those_who_want_no_motion(open_page, small):
    page = open_page(small, reduced_motion='reduce')
    wait_for_faces(page)
    face_button(page, 3).click()
    face_button(page, 4).click()
    page.wait_for_function('frames[0]')
    page.wait_for_timeout(500)
    assert page.evaluate('position.value') == '0'
    page.get_by_role('button', name='Play').click()
    page.wait_for_function('position.value === "3"')


@pytest.mark.parametrize('width', [320, 390, 1280])
def test_nothing_is_cut_off_at_the_side(open_page, small, width):
    page = open_page(small, viewport={'width': width, 'height': 700})
    wait_for_faces(page)
    face_button(page, 3).click()
    face_button(page, 4).click()
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    box = page.get_by_role('button', name='Download this face').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= width and box['y'] + box['height'] <= 700


def test_the_workflow_publishes_the_page_of_the_shipped_generator():
    workflow = (ROOT / '.github' / 'workflows' / 'pages.yml').read_text()
    assert re.search(r'run: python generate\.py --page site\n', workflow) and 'path: site\n' in workflow
