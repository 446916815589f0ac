import numpy as np
import pytest

from dataset.split import split


@pytest.mark.parametrize('count, expected', [(0, []), (9, []), (10, [9]), (35, [9, 19, 29])])
def test_every_tenth_image_is_held_out(count, expected):
    training, held_out = split(count, 'images')
    assert held_out.tolist() == expected and sorted([*training, *held_out]) == list(range(count))


def test_nothing_is_held_out_where_nothing_compares():
    training, held_out = split(35, 'none')
    assert training.tolist() == list(range(35)) and not len(held_out)


def test_no_person_is_on_both_sides():
    people = [f'{number}' for number in np.random.default_rng(0).integers(0, 200, 3000)]
    training, held_out = split(3000, 'people', people)
    on_either_side = ({people[index] for index in side} for side in (training, held_out))
    assert set.isdisjoint(*on_either_side) and len({people[index] for index in held_out}) == 20
    assert sorted([*training, *held_out]) == list(range(3000)) and 200 < len(held_out) < 400
