"""What TF Serving makes of lists, objects and named tensors."""

import numpy as np
from asking import RED, H, I, K, T, bad, good, pixels

OF_INT = {"signature_name": "of_int32"}
SHAPES = [
    good("26", f"{K}:predict", {**OF_INT, "instances": [[1, 2], [3, 4]]}, {"predictions": [[1, 2], [3, 4]]}),
    good("26", f"{K}:predict", {**OF_INT, "inputs": 7}, {"outputs": 7}),
    good(
        "26", f"{K}:predict", {**OF_INT, "inputs": [[[1, 2], [3, 4], [5, 6]]]}, {"outputs": [[[1, 2], [3, 4], [5, 6]]]}
    ),
    good("45", f"{K}:predict", {**OF_INT, "instances": [[], []]}, {"predictions": [[], []]}),
    good("45", f"{K}:predict", {**OF_INT, "inputs": []}, {"outputs": []}),
    bad(
        "26",
        f"{K}:predict",
        {**OF_INT, "instances": [[1, 2], [3, 4], [5, 6, 7]]},
        "element: 2 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3",
    ),
    bad(
        "26",
        f"{K}:predict",
        {**OF_INT, "instances": [{"x": [1]}, {"x": [1, 2]}]},
        "element: 1 key: x of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2",
    ),
    bad(
        "27", f"{K}:predict", {**OF_INT, "instances": [[1, 2], [3, 4], [[5, 6]]]}, "Expecting shape [2] but got: [1,2]"
    ),
    bad("27", f"{K}:predict", {**OF_INT, "instances": [1, [1]]}, "Expecting shape [] but got: [1]"),
    bad("27", f"{K}:predict", {**OF_INT, "instances": [[1], 1]}, "Expecting shape [1] but got: []"),
    bad(
        "27",
        f"{K}:predict",
        {**OF_INT, "inputs": [[1], 1]},
        "JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    bad("27", f"{K}:predict", {**OF_INT, "inputs": [1, [1]]}, "Encountered list at unexpected level: 1 expected < 1"),
    bad(
        "28",
        f"{K}:predict",
        {**OF_INT, "inputs": [[1, 2], [3]]},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    bad(
        "28",
        f"{I}:predict",
        {"instances": [[*pixels(RED)[:-1], pixels(RED)[0][:-1]]]},
        "Encountered list at unexpected size: 7 at level: 1 expected size: 8",
    ),
    bad("29", f"{I}:predict", {"instances": [pixels(RED, 16)]}, "not compatible with expected shape"),
    bad("30", f"{I}:predict", {"instances": np.zeros([1, 8, 8, 5]).tolist()}, "not compatible with expected shape"),
    bad("30", f"{I}:predict", {"instances": [1.0]}, ""),
    good("36", f"{T}:predict", {"instances": [{"a": 1, "b": 0.2}]}, {"predictions": [{"sum": 1.2, "difference": 0.8}]}),
    good("36", f"{T}:predict", {"inputs": {"a": [1], "b": [0.2]}}, {"outputs": {"sum": [1.2], "difference": [0.8]}}),
    good(
        "39",
        f"{T}:predict",
        {"inputs": {"a": [1], "b": [0.2], "c": "ignored"}},
        {"outputs": {"sum": [1.2], "difference": [0.8]}},
    ),
    bad("36", f"{T}:predict", {"instances": [[1, 2]]}, "instances is a plain list, but expecting list of objects"),
    bad("36", f"{T}:predict", {"instances": [1, 2]}, "instances is a plain list, but expecting list of objects"),
    bad("36", f"{T}:predict", {"inputs": [1, 2]}, "inputs is a plain value/list, but expecting an object"),
    bad("36", f"{T}:predict", {"inputs": 1}, "inputs is a plain value/list, but expecting an object"),
    bad("37", f"{T}:predict", {"instances": [{"a": 1}]}, "keys must be equal to: a,b"),
    bad("37", f"{T}:predict", {"instances": [{"a": 1, "b": 2, "c": 3}]}, "does not have named input: c"),
    bad(
        "37",
        f"{T}:predict",
        {"instances": [{"a": 1, "b": 2}, {"b": 2}]},
        "Failed to process element: 1 of 'instances' list.",
    ),
    bad("37", f"{T}:predict", {"instances": [{}]}, "keys must be equal to: a,b"),
    bad("37", f"{H}:predict", {"instances": [{"z": 1}]}, "does not have named input: z"),
    bad("38", f"{T}:predict", {"instances": [{"a": 1, "b": 2}, [1]]}, "Expecting object but got list at item 1"),
    bad("38", f"{H}:predict", {"instances": [1, {"x": 1}]}, "Expecting value/list but got object at item 1"),
    bad("39", f"{T}:predict", {"inputs": {"a": [1]}}, "Missing named input: b in 'inputs' object."),
    bad("39", f"{H}:predict", {"inputs": {"y": [1]}}, "Missing named input: x in 'inputs' object."),
    bad("39", f"{H}:predict", {"inputs": {}}, "Missing named input: x in 'inputs' object."),
    bad("45", f"{T}:predict", {"signature_name": "uneven", "instances": [1, 2]}, "inconsistent batch size"),
    good(
        "45", f"{T}:predict", {"signature_name": "uneven", "inputs": [1, 2]}, {"outputs": {"all": [1, 2], "first": [1]}}
    ),
    bad(
        "45",
        f"{T}:predict",
        {"signature_name": "scalar", "instances": [1, 2]},
        "Tensor name: total has no shape information",
    ),
    good("45", f"{T}:predict", {"signature_name": "scalar", "inputs": [1, 2]}, {"outputs": 3.0}),
    good("42", f"{T}:predict", {"signature_name": "logarithm", "instances": [0, -1, 1]}, text="[-Infinity, NaN, 0.0"),
    bad("30", f"{T}:predict", {"inputs": {"a": [1, 2], "b": [1, 2, 3]}}, ""),
]
