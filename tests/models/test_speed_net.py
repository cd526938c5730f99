"""The speed net: sizes of the paper, and errors."""

import pytest

from keras_committee import flops, layers, models


def test_the_network_has_the_sizes_of_the_paper():
    """Jordan 2024, section 3: 1.97 million parameters; 31, 15, 7 and 3 pixels."""
    model = models.speed_net(classes=10)
    kernels = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases = 24 + 2 * 64 + 4 * 256  # of the whitening, whose kernel is not trained, and of the normalizations
    assert flops.parameters(model) == kernels + biases + 2560
    products = 31**2 * 12 * 24 + 9 * (
        31**2 * 24 * 64 + 15**2 * (64 * 64 + 64 * 256) + 7**2 * 2 * 256 * 256 + 3**2 * 256 * 256
    )
    assert flops.multiply_adds(model) == products + 2560
    assert (model.input_shape, model.output_shape, model.name) == (
        (None, 32, 32, 3),
        (None, 10),
        "speed_net_64_256_256",
    )
    assert [block.name for block in layers.stochastic_depth_blocks(models.speed_net(classes=3, survival=0.8))] == [
        "block_1", "block_2", "block_3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "at least 1"),
        ({"classes": 0}, "at least 1"),
        ({"activation": "tanh"}, "one of quick_gelu, relu. Received: 'tanh'"),
        ({"image_shape": (8, 8, 3)}, "3 groups need images of 9 pixels"),
    ],
)
def test_a_network_that_cannot_be_built_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        models.speed_net(**{"classes": 10, **options})
