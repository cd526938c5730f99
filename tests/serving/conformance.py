"""What TF Serving's REST API answers, as data: every request of the suite, and what must come back."""

from conformance_shapes import SHAPES
from conformance_text import PARSING, PREDICT
from conformance_urls import EXAMPLES, URLS
from conformance_values import IMAGES, TYPES

CASES = [*PREDICT, *PARSING, *TYPES, *SHAPES, *IMAGES, *EXAMPLES, *URLS]
