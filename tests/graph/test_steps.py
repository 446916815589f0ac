import numpy as np
import pytest

import helper
from graph.replica import Replica
from graph.session import tf
from graph.steps import StoredFaces


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize('count', [1, 3, 4])
def test_steps_are_made_one_after_the_other_as_many_as_asked_for(session, rng, xla, count):
    x = rng.uniform(0.5, 2, (4 * 5, 3)).astype(np.float32)  # batches of 5, four in all
    variable = tf.get_variable('variable', initializer=1.0)
    placeholder, fed = tf.placeholder(tf.int32, []), tf.placeholder(tf.float32, [None, 3])

    def step(batch):
        """Twice the variable is read, before and after it changes in a way that depends on the order."""
        before = variable.read_value()
        with tf.control_dependencies([before]):
            changed = variable.assign(before * 0.5 + tf.reduce_mean(batch))
        with tf.control_dependencies([changed]):
            return [before, variable.read_value(), batch[:, :1], -batch[:, :1]]

    shapes = [[], [], [None, 1], [None, 1]]
    steps = Replica().repeat(step, [fed], shapes, 4, placeholder, xla)
    session.run(variable.initializer)
    before, after, scores, negative = session.run(steps, {placeholder: count, fed: x if xla else x[: 5 * count]})
    expected = [1.0]
    for batch in x.reshape(4, 5, 3)[:count]:
        expected.append(expected[-1] * 0.5 + batch.mean())
    np.testing.assert_allclose(before[:count], expected[:-1], rtol=1e-6)
    np.testing.assert_allclose(after[:count], expected[1:], rtol=1e-6)
    np.testing.assert_allclose(session.run(variable), expected[-1], rtol=1e-6)
    np.testing.assert_array_equal(scores[:count], x.reshape(4, 5, 3)[:count, :, :1])
    np.testing.assert_array_equal(negative, -scores)


def test_stored_faces_give_the_batches_of_the_article_and_are_in_no_checkpoint(session, rng):
    faces = rng.integers(0, 256, (20, 4, 4, 3), np.uint8)
    stored = StoredFaces(faces.shape)
    indices = np.array([3, 19, 0, 3])
    batch = stored.get_batch(tf.constant(indices))
    stored.load(faces, session)
    np.testing.assert_array_equal(session.run(batch), helper.get_batch(faces, indices))
    assert tf.global_variables() == []
