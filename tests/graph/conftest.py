"""A graph, a session and random numbers of its own for each test of this folder."""

import numpy as np
import pytest

from graph.session import open_session, tf


@pytest.fixture(autouse=True)
def session():
    """A session of a new graph with seed 0, the default graph and session meanwhile."""
    with tf.Graph().as_default(), open_session() as session:
        tf.set_random_seed(0)
        yield session


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def evaluate(session):
    """A function that initialises all variables and returns the values of tensors."""

    def evaluate(*tensors, feed=None):
        session.run(tf.global_variables_initializer())
        return session.run(tensors, feed)

    return evaluate


@pytest.fixture
def at_step(session):
    """A function that returns the values of tensors when a number of steps have been made."""

    def at_step(number, tensors):
        tf.train.get_or_create_global_step().load(number, session)
        return session.run(tensors)

    return at_step
