"""What tests of this folder do in the session that each of them has."""

import pytest

from graph.session import tf


@pytest.fixture(autouse=True)
def own_session(session):
    """Every test of this folder has a `session`."""


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
