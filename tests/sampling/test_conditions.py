from dataclasses import replace

import numpy as np
import pytest

from common.cli import UserError
from sampling.conditions import ask, sample_condition, set_attribute
from sampling.latents import STEPS_PER_LEG, interpolate, sample_latents
from systems import SYSTEMS

PLAIN = SYSTEMS['oreilly']
SYSTEM = replace(PLAIN, attributes=('Smiling', 'Male', 'Bald'), combinations=('100', '100', '010', '011'))
PETS = replace(PLAIN, attributes=('cats', 'dogs'), combinations=('10', '01', '01'))


# --- latents


@pytest.mark.parametrize('latent', ['uniform', 'normal'])
def test_latents_end_with_their_conditions_and_do_not_depend_on_how_many_are_drawn(latent):
    system = replace(SYSTEM, latent=latent)
    latents = sample_latents(system, np.random.default_rng(3), 50)
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(latents, [sample_latents(system, rng, 1)[0] for _ in range(50)])
    assert latents.shape == (50, 103) and latents.dtype == np.float32
    drawn = {''.join('1' if value == 1 else '0' for value in row) for row in latents[:, 100:]}
    assert drawn == set(system.combinations) and set(np.unique(latents[:, 100:])) == {-1, 1}
    assert sample_latents(system, rng, 0).shape == (0, 103)


def test_truncation_leaves_conditions_as_they_are():
    whole, half = (sample_latents(SYSTEM, np.random.default_rng(0), 20, truncate) for truncate in (1, 0.5))
    np.testing.assert_allclose(half[:, :100], whole[:, :100] / 2)
    np.testing.assert_array_equal(half[:, 100:], whole[:, 100:])


def test_conditions_are_drawn_as_often_as_they_occur():
    rng = np.random.default_rng(0)
    conditions = np.array([sample_condition(SYSTEM, rng) for _ in range(4000)])
    np.testing.assert_allclose((conditions == 1).mean(axis=0), [0.5, 0.5, 0.25], atol=0.03)


def test_conditions_are_interpolated_in_straight_lines_and_latents_as_without_them():
    system = replace(SYSTEM, latent='normal')
    latents = sample_latents(system, np.random.default_rng(0), 2)
    latents[:, 100:] = [[1, -1, -1], [-1, -1, 1]]
    path = interpolate(system, latents)
    np.testing.assert_allclose(path[:, :100], interpolate(replace(PLAIN, latent='normal'), latents[:, :100]))
    assert path[STEPS_PER_LEG // 2, 100:].tolist() == [0, -1, 0]


# --- asking


def test_what_is_asked_for_comes_with_what_occurs_together_with_it():
    assert ask(SYSTEM, {}) == SYSTEM
    assert ask(SYSTEM, {'Male': True}).combinations == ('010', '011')
    assert ask(SYSTEM, {'Male': True, 'Bald': False}).combinations == ('010',)
    assert ask(PETS, {'cats': True}).combinations == ('10',)


def test_what_never_occurs_can_be_asked_for_too():
    assert ask(SYSTEM, {'Male': False, 'Bald': True}).combinations == ('101', '101', '001', '001')


def test_the_latent_stays_the_same_whatever_is_asked_for():
    latents = [
        sample_latents(ask(SYSTEM, wanted), np.random.default_rng(0), 9)
        for wanted in ({}, {'Male': True, 'Bald': True})
    ]
    np.testing.assert_array_equal(latents[0][:, :100], latents[1][:, :100])
    assert (latents[1][:, 100:] == [-1, 1, 1]).all()


def test_an_attribute_that_the_generator_does_not_know_is_an_error_that_lists_those_it_knows():
    with pytest.raises(UserError, match='the attribute Smilin; it knows Smiling, Male, Bald$'):
        ask(SYSTEM, {'Smilin': True, 'Male': False})
    with pytest.raises(UserError, match='trained without --attributes'):
        ask(PLAIN, {'Smiling': True})


def test_an_attribute_is_set_with_all_else_equal():
    latents = sample_latents(SYSTEM, np.random.default_rng(0), 5)
    bald = set_attribute(SYSTEM, latents, 'Bald')
    np.testing.assert_array_equal(bald[:, :-1], latents[:, :-1])
    assert (bald[:, -1] == 1).all() and (latents[:, -1] == -1).any()


def test_classes_replace_each_other():
    latents = sample_latents(PETS, np.random.default_rng(0), 5)
    assert (set_attribute(PETS, latents, 'dogs')[:, 100:] == [-1, 1]).all()
