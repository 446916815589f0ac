from dataclasses import replace

import numpy as np
import pytest

from common.cli import UserError
from sampling.conditions import Conditions
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


def test_conditions_are_sampled_as_often_as_they_occur():
    rng = np.random.default_rng(0)
    sampled = np.array([Conditions.of(SYSTEM).sample(rng) for _ in range(4000)])
    np.testing.assert_allclose((sampled == 1).mean(axis=0), [0.5, 0.5, 0.25], atol=0.03)


def test_conditions_are_interpolated_in_straight_lines_and_latents_as_without_them():
    system = replace(SYSTEM, latent='normal')
    latents = sample_latents(system, np.random.default_rng(0), 2)
    latents[:, 100:] = [[1, -1, -1], [-1, -1, 1]]
    path = interpolate(system, latents)
    np.testing.assert_allclose(path[:, :100], interpolate(replace(PLAIN, latent='normal'), latents[:, :100]))
    assert path[STEPS_PER_LEG // 2, 100:].tolist() == [0, -1, 0]


# --- conditional sampling


def test_conditions_are_limited_to_the_combinations_with_the_wanted_attributes():
    conditions = Conditions.of(SYSTEM)
    assert conditions.asked({}) == conditions
    assert conditions.asked({'Male': True}).combinations == ('010', '011')
    assert conditions.asked({'Male': True, 'Bald': False}).combinations == ('010',)
    assert Conditions.of(PETS).asked({'cats': True}).combinations == ('10',)


def test_a_combination_that_never_occurs_can_be_asked_for():
    asked = Conditions.of(SYSTEM).asked({'Male': False, 'Bald': True})
    assert asked.combinations == ('101', '101', '001', '001')


def test_the_latent_does_not_depend_on_the_wanted_attributes():
    latents = [
        sample_latents(SYSTEM, np.random.default_rng(0), 9, conditions=Conditions.of(SYSTEM).asked(wanted))
        for wanted in ({}, {'Male': True, 'Bald': True})
    ]
    np.testing.assert_array_equal(latents[0][:, :100], latents[1][:, :100])
    assert (latents[1][:, 100:] == [-1, 1, 1]).all()


def test_an_unknown_attribute_is_an_error_that_lists_the_attributes_of_the_generator():
    message = 'unknown attribute Smilin: this generator was trained with Smiling, Male, Bald$'
    with pytest.raises(UserError, match=message):
        Conditions.of(SYSTEM).asked({'Smilin': True, 'Male': False})
    with pytest.raises(UserError, match='trained without --attributes'):
        Conditions.of(PLAIN).asked({'Smiling': True})


@pytest.mark.parametrize('wanted', [{'cats': True, 'dogs': True}, {'cats': False, 'dogs': False}])
def test_two_classes_at_once_or_none_are_an_error(wanted):
    with pytest.raises(UserError, match='every face has exactly one of cats, dogs: choose one --with'):
        Conditions.of(PETS).asked(wanted)
    assert Conditions.of(PETS).asked({'cats': True, 'dogs': False}).combinations == ('10',)


@pytest.mark.parametrize(('on', 'value'), [(True, 1), (False, -1)])
def test_an_attribute_is_switched_with_all_else_equal(on, value):
    latents = sample_latents(SYSTEM, np.random.default_rng(0), 20)
    switched = Conditions.of(SYSTEM).switched(latents, 'Bald', on)
    np.testing.assert_array_equal(switched[:, :-1], latents[:, :-1])
    assert (switched[:, -1] == value).all() and (latents[:, -1] != value).any()


def test_classes_replace_each_other():
    latents = sample_latents(PETS, np.random.default_rng(0), 5)
    conditions = Conditions.of(PETS)
    assert (conditions.switched(latents, 'dogs')[:, 100:] == [-1, 1]).all()
    assert (conditions.switched(latents, 'cats', on=False)[:, 101] == latents[:, 101]).all()
