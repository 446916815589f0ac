import json
import re
from dataclasses import fields, replace

import pytest
from conftest import chosen

from common import cli
from config import settings as module
from config.settings import (
    ADDED,
    NEWEST,
    OVERRIDES,
    RECORDED,
    RETIRED,
    SETTINGS,
    choose_settings,
    flag,
    parse_arguments,
    read_settings,
    system_of,
)
from rundir.run_json import read_run
from sampling.generator import PRETRAINED
from systems import SYSTEMS, System

# Another value for each setting that affects networks or training.
OTHER = {
    'system': 'sharma', 'width': 0.5, 'seed': 1, 'hold_out': 'people', 'local_batch_norm': True,
    'attributes': ['Smiling', 'Male'],
    'batch_size': 2, 'learning_rate': 0.5, 'learning_rate_ratio': 2.0,
    'learning_rate_decay': 0.1, 'optimizer': 'rmsprop', 'beta1': 0.0,
    'clip_value': 1.0, 'real_label': 0.7, 'fake_label': 0.1, 'wanted_label': 0.7, 'label_noise': 0.1, 'flip': 0.5,
    'discriminator_batch_norm': False, 'r1': 0.5, 'r1_every': 8,
    'augment': 'translation', 'augment_target': 0.6, 'instance_noise': 0.1, 'update_order': 'simultaneous',
    'latent_size': 7,
    'latent': 'normal', 'leaky_slope': 0.3, 'dropout': 0.3, 'weight_stddev': 0.0, 'ema': 0.5, 'precision': 'bf16',
    'crop': 99, 'samples': 9, 'channels': 1, 'image_size': 32,
    'init_from': '/elsewhere', 'freeze_discriminator': 1,
}  # fmt: skip
# Flags without which another is refused.
NEEDED = {'freeze_discriminator': ['--init-from=/elsewhere'], 'augment_target': ['--augment=translation']}
SCHEDULE = {'epochs': 7, 'steps': 7, 'sample_every': 7, 'sample_epochs': 7}


def flags_of(name, value) -> list[str]:
    """The flag that gives a setting this value."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f'no_{name}')]
    return [flag(name), *(map(str, value) if isinstance(value, list) else [str(value)])]


# --- flags and what they add up to


@pytest.mark.parametrize('name', SYSTEMS)
def test_the_settings_of_a_system_are_its_own(name):
    settings, system = chosen(f'--system {name}')
    expected = SYSTEMS[name]
    if expected.precision == 'auto':
        expected = replace(expected, precision=settings['precision'])
    assert system == expected and all(settings[each] == getattr(expected, each) for each in OVERRIDES)


def test_only_what_follows_from_the_networks_cannot_be_overridden():
    derived = {'article', 'image_size', 'generator', 'discriminator', 'attributes', 'combinations'}
    assert {field.name for field in fields(System)} == set(OVERRIDES) | derived


@pytest.mark.parametrize('name', OVERRIDES)
def test_a_flag_overrides_the_value_of_the_system(name):
    value = (OTHER | SCHEDULE)[name]
    settings, system = chosen(' '.join(flags_of(name, value) + NEEDED.get(name, [])))
    assert settings[name] == getattr(system, name) == value != getattr(SYSTEMS['oreilly'], name)


def test_the_width_multiplies_the_channels_of_hidden_layers():
    _, system = chosen('--width 0.1')
    assert [layer.output for layer in system.generator] == [(2, 2, 51), 26, 13, 3]
    assert [layer.output for layer in system.discriminator] == [6, 13, 26, (1,)]
    _, system = chosen('--width 0.0001')
    assert [layer.output for layer in system.generator] == [(2, 2, 1), 1, 1, 3]


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ('', (2, None, 400, None)),
        ('--epochs 7', (7, None, 400, None)),
        ('--steps 7', (None, 7, 400, None)),
        ('--epochs 7 --steps 9', (7, 9, 400, None)),
        ('--sample-epochs 3', (2, None, None, 3)),
        ('--sample-every 3', (2, None, 3, None)),
    ],
)
def test_of_steps_and_epochs_the_given_one_counts(flags, expected):
    settings, _ = chosen(flags)
    assert tuple(settings[name] for name in ('epochs', 'steps', 'sample_every', 'sample_epochs')) == expected


def test_paths_are_kept_absolute_and_names_of_data_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, _ = chosen('--data pictures.zip --data-dir there')
    assert settings['data'] == str(tmp_path / 'pictures.zip') and settings['data_dir'] == str(tmp_path / 'there')
    assert [chosen(f'--data {name}')[0]['data'] for name in ('celeba', 'demo')] == ['celeba', 'demo']


@pytest.mark.parametrize(
    ('flags', 'message'), [('--resume', '--run-dir'), ('--gif', '--run-dir'), ('--data=', '--data: .*empty')]
)
def test_flags_that_cannot_be_met_are_an_error(flags, message):
    with pytest.raises(cli.UserError, match=message):
        parse_arguments(flags.split())


def test_resume_means_the_newest_checkpoint_or_one_of_a_step():
    assert parse_arguments(['--run-dir', 'x']).resume is None
    assert parse_arguments(['--run-dir', 'x', '--resume']).resume == NEWEST
    assert parse_arguments(['--run-dir', 'x', '--resume', '12']).resume == 12
    with pytest.raises(cli.UserError, match="'runs/a' is a path, not a step: use --resume --run-dir runs/a"):
        parse_arguments(['--resume', 'runs/a'])


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--freeze-discriminator 1', '--freeze-discriminator requires --init-from'),
        ('--freeze-discriminator 4 --init-from x', 'at most 3 of 4 layers'),
        ('--augment-target 0.6', '--augment-target requires --augment'),
        ('--attribute-table x.csv', '--attribute-table requires --attributes'),
        ('--attributes Male Young Male', '--attributes: a name is given twice'),
        ('--sample-every 9 --sample-epochs 9', '--sample-every and --sample-epochs: use one of them'),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(flags, message):
    with pytest.raises(cli.UserError, match=message):
        chosen(flags)


# --- a run that goes on


def test_what_a_run_is_made_of_is_fixed():
    assert set(OTHER) == {name for name, setting in SETTINGS.items() if not setting.changeable} | set(RECORDED)
    saved, _ = chosen('')
    for name, value in OTHER.items():
        if name in RECORDED:
            continue
        given = parse_arguments(flags_of(name, value))
        was = 'not set' if saved[name] is None else re.escape(str(saved[name]))
        with pytest.raises(cli.UserError, match=f'^{flag(name)} is {was} in this run.*--init-from'):
            choose_settings(given, saved)
        needed = {'freeze_discriminator': {'init_from': '/elsewhere'}, 'augment_target': {'augment': 'translation'}}
        assert choose_settings(given, saved | {name: value} | needed.get(name, {}))[name] == value


@pytest.mark.parametrize('name', RECORDED)
def test_what_affects_only_the_training_may_change(name):
    saved, _ = chosen('')
    assert choose_settings(parse_arguments(flags_of(name, OTHER[name])), saved)[name] == OTHER[name] != saved[name]


def test_the_rest_of_a_run_may_change():
    saved, _ = chosen('--epochs 3 --sample-every 9')
    flags = '--steps 7 --sample-epochs 2 --checkpoint-every 5 --keep-every 2 --evaluate-every 4 --xla --data demo'
    changed = choose_settings(parse_arguments(flags.split()), saved)
    expected = {
        'epochs': None, 'steps': 7, 'sample_every': None, 'sample_epochs': 2, 'checkpoint_every': 5, 'keep_every': 2,
        'evaluate_every': 4, 'xla': True, 'data': 'demo',
    }  # fmt: skip
    assert changed == saved | expected
    assert choose_settings(parse_arguments([]), changed) | {'data_dir': ''} == changed | {'data_dir': ''}


def test_an_old_run_goes_on_as_it_was():
    saved, _ = chosen('')
    old = {name: value for name, value in saved.items() if name not in ADDED}
    assert choose_settings(parse_arguments([]), read_settings(old)) == saved | ADDED


def test_settings_that_older_runs_lack_get_the_value_that_changes_nothing():
    defaults = {name: SETTINGS[name].default for name in ADDED}
    assert defaults | {'hold_out': 'images'} == ADDED  # since then, images are held out only where they are needed


def test_settings_that_only_older_runs_have_are_dropped():
    saved, _ = chosen('')
    assert read_settings(RETIRED | saved) == saved


@pytest.mark.parametrize(
    ('name', 'value'), [('spectral_norm', True), ('reduce_precision', 'bf16'), ('objective', 'relativistic')]
)
def test_a_run_with_a_setting_that_is_gone_is_refused(name, value):
    saved, _ = chosen('')
    with pytest.raises(cli.UserError, match=f'{flag(name)} {value}, which is no longer supported$'):
        read_settings(RETIRED | saved | {name: value})


def test_the_settings_of_the_pretrained_generator_are_complete():
    assert system_of(read_run(PRETRAINED)['settings']).image_size == 28


# --- damaged settings


@pytest.fixture
def saved() -> dict:
    return json.loads(json.dumps(chosen('')[0]))


@pytest.mark.parametrize(
    'flags', ['', '--no-discriminator-batch-norm --r1 2 --xla --image-size 56x28', '--attributes Male Young']
)
def test_settings_that_flags_give_are_valid(flags):
    settings, _ = chosen(flags)
    assert read_settings(json.loads(json.dumps(settings))) == settings


def test_settings_that_a_resumed_run_can_have_are_valid(saved):
    changed = saved | {'data': 'elsewhere', 'epochs': None, 'steps': 7, 'xla': True, 'ema': 0.0}
    assert read_settings(changed) == changed


@pytest.mark.parametrize(
    ('name', 'value'),
    [('batch_size', 'many'), ('batch_size', -8), ('batch_size', None), ('batch_size', True), ('ema', [1]),
     ('learning_rate', float('nan')), ('data', 5), ('data', None), ('epochs', None), ('xla', 'yes'), ('xla', 1),
     ('attributes', 'Male'), ('attributes', [1]), ('attributes', None), ('attribute_table', 5),
     ('attributes', ['Male', 'Male']), ('attribute_table', '/table'), ('image_size', 29), ('image_size', '64x64'),
     ('batch_size', '8'), ('batch_size', 8.0), ('batch_size', 10**400), ('ema', 10**400), ('channels', 3.0),
     ('precision', 'auto'), ('system', 'x'), ('sample_epochs', 3), ('freeze_discriminator', 1), ('data_dir', ''),
     ('seed', 1.5), ('local_batch_norm', 1)],
)  # fmt: skip
def test_a_setting_with_an_impossible_value_is_named(saved, name, value):
    with pytest.raises(cli.UserError, match=f'run.json are damaged: .*{name.replace("_", ".")}'):
        read_settings(saved | {name: value})


@pytest.mark.parametrize('name', ['unknown', 'run_dir'])
def test_an_unknown_setting_is_named_as_one_of_a_newer_version(saved, name):
    with pytest.raises(cli.UserError, match=f'of a newer version; unknown: {name}$'):
        read_settings(saved | {name: 'x'})


def test_settings_that_are_missing_are_named(saved):
    with pytest.raises(cli.UserError, match='missing: ema, seed$'):
        read_settings({name: value for name, value in saved.items() if name not in ('seed', 'ema', 'flip')})


@pytest.mark.parametrize(('fast', 'expected'), [(True, 'bf16'), (False, 'fp32')])
def test_auto_is_the_precision_that_the_hardware_computes_faster_and_stays_what_it_was(monkeypatch, fast, expected):
    monkeypatch.setattr(module, 'has_fast_bfloat16', lambda: fast)
    settings, _ = chosen('--system recommended')
    assert settings['precision'] == expected and chosen('--precision auto')[0]['precision'] == expected
    assert chosen('--system recommended --precision bf16')[0]['precision'] == 'bf16'
    monkeypatch.setattr(module, 'has_fast_bfloat16', lambda: not fast)
    for flags in ([], ['--precision', 'auto']):  # resumed on another machine
        assert choose_settings(parse_arguments(flags), settings)['precision'] == expected
