"""Names of variables in checkpoints, which never change: shipped generators and older runs depend on them."""

AVERAGE = '/ExponentialMovingAverage'  # suffix of the moving average of a weight, as TensorFlow names it


def layer_scope(network: str, number: int) -> str:
    """The scope of a layer's variables; `network` is 'generator' or 'discriminator', and `number` counts from 1."""
    return f'{network}/layer{number}'
