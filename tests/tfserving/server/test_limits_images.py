"""Size of an image before it is decoded, whatever its other bytes are."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from keras_committee.tfserving.server.limits import Limits, check_image_sizes, image_size
from keras_committee.tfserving.tf_protocol import StatusError


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"


def jpeg_header(width, height, before=b""):
    return b"\xff\xd8" + before + b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(12)


APP = b"\xff\xe0\x00\x10JFIF\0" + bytes(9)


@pytest.mark.parametrize(
    "content",
    [png_header(7, 9), jpeg_header(7, 9, APP), jpeg_header(7, 9, APP + b"\xff" * 3), jpeg_header(7, 9, APP + b"junk")],
)
def test_D13_the_size_of_an_image_is_read_from_its_header(content):
    assert image_size(content) == (7, 9)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", png_header(7, 9)[:20], b"GIF89a", APP, b"\xff\xd8\xff\xe0\xff\xff"]
)
def test_D13_content_without_a_header_has_no_size(content):
    assert image_size(content) is None


@pytest.mark.parametrize("make", [png_header, jpeg_header])
def test_D13_an_image_with_too_many_pixels_is_rejected_also_in_an_example(make):
    limits = Limits(max_pixels=1000)
    check_image_sizes(np.array([make(40, 25)], object), limits)
    within_an_example = b"\x0a\x99image/encoded" + make(77, 13)
    for content in (make(77, 13), within_an_example):
        with pytest.raises(StatusError, match="an image has 77 x 13 pixels; at most 1000"):
            check_image_sizes(np.array([b"", content], object), limits)


@pytest.mark.parametrize(
    "content", [b"GIF89a", b"BM" + bytes(9), b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBPVP8 ", b"no image"]
)
def test_D13_which_formats_are_accepted_is_left_to_the_model(content):
    check_image_sizes(np.array([content, png_header(7, 9)], object), Limits())


@pytest.mark.parametrize("format_name", ["GIF", "BMP"])
def test_D13_the_size_of_other_images_that_tensorflow_decodes_is_limited(format_name):
    buffer = io.BytesIO()
    Image.new("RGB", (37, 11)).save(buffer, format_name)
    assert image_size(buffer.getvalue()) == (37, 11)
    with pytest.raises(StatusError, match="an image has 37 x 11 pixels; at most 400"):
        check_image_sizes(np.array([buffer.getvalue()], object), Limits(max_pixels=400))


def test_D13_each_frame_of_a_gif_counts():
    buffer, frames = io.BytesIO(), [Image.new("L", (8, 8), color) for color in (0, 90, 180)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    width, height = image_size(buffer.getvalue())
    assert width == 8
    assert height in (16, 24)


def test_D13_the_search_for_images_in_a_string_is_bounded():
    started = time.monotonic()
    with pytest.raises(StatusError, match="more than 16 images"):
        check_image_sizes(np.array([b"x" + b"\xff\xd8\xff" * 2**20], object), Limits())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "JPEG"}, {"format": "JPEG", "progressive": True}])
def test_real_images_have_the_size_that_they_decode_to(options):
    buffer = io.BytesIO()
    Image.new("RGB", (37, 11)).save(buffer, **options)
    assert image_size(buffer.getvalue()) == (37, 11)
