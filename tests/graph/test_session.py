import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from graph import session as module
from graph.session import devices, has_fast_bfloat16, open_session, quiet_stderr, session_config, tf

X86 = 'x86_64', 'AMD64'


def run_python(code):
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result


# Whether TensorFlow uses oneDNN, which is part of it on x86 only.
PRINT_ONEDNN = 'from tensorflow.python.framework import test_util; print(test_util.IsMklEnabled())'


def test_tensorflow_loads_on_first_use_and_without_a_word_and_uses_onednn_on_every_x86_processor(monkeypatch):
    monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS', raising=False)
    result = run_python(
        'import sys, dcgan, graph.replica\n'
        'from graph.session import open_session, tf\n'
        'assert "tensorflow" not in sys.modules\n'
        'with open_session() as session: print(session.run(tf.constant(1) + 1))\n' + PRINT_ONEDNN
    )
    assert (result.stdout, result.stderr) == (f'2\n{platform.machine() in X86}\n', '')


def test_messages_of_native_code_are_silenced_while_tensorflow_starts(capfd, monkeypatch):
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '3')
    with quiet_stderr():
        os.write(2, b'inside')
    os.write(2, b'after')
    assert capfd.readouterr().err == 'after'


def test_messages_of_native_code_come_through_where_the_log_level_asks_for_them(capfd, monkeypatch):
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    with quiet_stderr():
        os.write(2, b'inside')
    assert capfd.readouterr().err == 'inside'


def test_stderr_is_back_after_an_error(capfd, monkeypatch):
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '3')
    with pytest.raises(KeyError), quiet_stderr():
        raise KeyError
    os.write(2, b'after')
    assert capfd.readouterr().err == 'after'


@pytest.mark.skipif(platform.machine() not in X86, reason='oneDNN is part of TensorFlow for x86')
def test_onednn_is_not_used_if_the_user_forbids_it(monkeypatch):
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
    assert run_python(f'from graph.session import tf\ntf.Graph()\n{PRINT_ONEDNN}').stdout == 'False\n'


def test_gpu_memory_is_claimed_as_it_is_needed():
    assert session_config().gpu_options.allow_growth


def test_a_session_opens_on_the_graph_that_it_is_given():
    with tf.Graph().as_default() as graph:
        constant = tf.constant(5)
    with open_session(graph) as session:
        assert session.run(constant) == 5


@pytest.mark.parametrize(
    'names, line',
    [
        (['CPU:0'], 'Devices: CPU:0. No GPU: training on the CPU.'),
        (['CPU:0', 'GPU:0', 'GPU:1'], 'Devices: CPU:0, GPU:0, GPU:1. Training on the GPU.'),
    ],
)
def test_one_line_says_which_devices_there_are_and_which_one_trains(monkeypatch, names, line):
    physical = [SimpleNamespace(name=f'/physical_device:{name}', device_type=name[:3]) for name in names]
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda: physical)
    assert devices() == line


@pytest.mark.parametrize(
    ('cpu', 'fast'),
    [
        ('flags : fpu avx2 avx512f', False),
        ('flags : fpu avx512f avx512_bf16', True),
        ('flags : fpu amx_bf16 amx_tile', True),
        ('Features : fp asimd i8mm bf16', True),
    ],
)
def test_bfloat16_is_fast_on_processors_with_units_for_it(monkeypatch, cpu, fast):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [])
    monkeypatch.setattr(module.Path, 'read_text', lambda path: cpu)
    assert has_fast_bfloat16() == fast


@pytest.mark.parametrize(('capability', 'fast'), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_fast_on_gpus_from_ampere_on(monkeypatch, capability, fast):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: ['GPU:0'])
    details = {'compute_capability': capability}
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda gpu: details)
    assert has_fast_bfloat16() == fast
