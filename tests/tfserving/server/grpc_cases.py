"""gRPC requests to `half_plus_two` and TF Serving's responses, as text protos.

The model is `half_plus_two` of zoo.py, version 123, label "lab"; the cases abbreviate its name to H. `ours` marks
limits of the local server, which other servers do not have.
"""

from typing import NamedTuple

SOURCES = {  # the files of TF Serving on which the cases rest
    "Predict": "servables/tensorflow/predict_util.cc and predict_impl.cc; model_servers/server_core.cc",
    "Classify": "servables/tensorflow/classifier.cc and classification_service.cc",
    "Regress": "servables/tensorflow/regressor.cc and regression_service.cc",
    "MultiInference": "servables/tensorflow/multi_inference.cc and multi_inference_helper.cc",
    "GetModelMetadata": "servables/tensorflow/get_model_metadata_impl.cc",
    "GetModelStatus": "model_servers/get_model_status_impl.cc",
    "HandleReloadConfigRequest": "model_servers/model_service_impl.cc",
}


class Case(NamedTuple):
    """A request, and the status code with a part of its message, or the response. A response of "" is not compared."""

    method: str
    request: str
    code: str = "OK"
    message: str = ""
    answer: str = ""
    ours: bool = False
    test: str = ""  # the file and the test of TF Serving from which the case is

    @property
    def source(self):
        return self.test or SOURCES[self.method]


def predict(rest, spec='name: "H"', **expected):
    return Case("Predict", f"model_spec {{ {spec} }} {rest}", **expected)


def tensor(dims, values, dtype="DT_FLOAT", name="x"):
    shape = " ".join(f"dim {{ size: {size} }}" for size in dims)
    return f'inputs {{ key: "{name}" value {{ dtype: {dtype} tensor_shape {{ {shape} }} {values} }} }}'


def y(dims, values, name="serving_default"):
    shape = " ".join(f"dim {{ size: {size} }}" for size in dims)
    return (
        f'model_spec {{ name: "H" version {{ value: 123 }} signature_name: "{name}" }} '
        f'outputs {{ key: "y" value {{ dtype: DT_FLOAT tensor_shape {{ {shape} }} {values} }} }}'
    )


def examples(method, signature, inputs, rest="", spec='name: "H"', **expected):
    """A Classify or Regress request on examples with the feature x."""
    request = f'model_spec {{ {spec} signature_name: "{signature}" }} input {{ {listed(inputs)} }} {rest}'
    return Case(method, request, **expected)


def listed(inputs, kind="example_list"):
    return f"{kind} {{ {' '.join(f'examples {{ {feature(value)} }}' for value in inputs)} }}"


def feature(value, key="x", kind="float_list"):
    return f'features {{ feature {{ key: "{key}" value {{ {kind} {{ value: {value} }} }} }} }}'


def answered(signature, result):
    return f'model_spec {{ name: "H" version {{ value: 123 }} signature_name: "{signature}" }} result {{ {result} }}'


def ups(*values):
    return " ".join(
        f'classifications {{ classes {{ label: "up" score: {v} }} classes {{ label: "down" score: {-v} }} }}'
        for v in values
    )


def multi(*tasks, inputs=(3,), **expected):
    text = " ".join(
        f'tasks {{ model_spec {{ name: "{model}" signature_name: "{name}" }} '
        f'method_name: "tensorflow/serving/{method}" }}'
        for model, name, method in tasks
    )
    return Case("MultiInference", f"{text} input {{ {listed(inputs)} }}", **expected)


def inferred(signature, result):
    return f'results {{ model_spec {{ name: "H" version {{ value: 123 }} signature_name: "{signature}" }} {result} }}'


def metadata(fields, spec='model_spec { name: "H" }', **expected):
    return Case("GetModelMetadata", f"{spec} metadata_field: {fields}", **expected)


def status(spec, **expected):
    return Case("GetModelStatus", f"model_spec {{ {spec} }}", **expected)


MODEL = "model half_plus_two"
BAD, GONE, LATER = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"
THREE = tensor([3], "float_val: [1, 2, 5]")
DOUBLE = tensor([1], "double_val: 1", "DT_DOUBLE")
AVAILABLE = 'model_version_status { version: 123 state: AVAILABLE status { error_code: OK error_message: "" } }'
MISSING_SPEC = {"code": BAD, "message": "Missing ModelSpec"}
LIE = {"code": BAD, "message": "tensor parsing error: x"}

_SHORT = {
    "predict": predict(THREE, 'name: "H" signature_name: "serving_default"', answer=y([3], "float_val: [2.5, 3, 4.5]")),
    "predict by default": predict(THREE, answer=y([3], "float_val: [2.5, 3, 4.5]")),
    "predict by version": predict(THREE, 'name: "H" version { value: 123 }', answer=y([3], "float_val: [2.5, 3, 4.5]")),
    "predict by label": predict(THREE, 'name: "H" version_label: "lab"', answer=y([3], "float_val: [2.5, 3, 4.5]")),
    "predict content": predict(tensor([1], r'tensor_content: "\000\000\200@"'), answer=y([1], "float_val: 4")),
    "predict one value for three": predict(tensor([3], "float_val: 1"), answer=y([3], "float_val: [2.5, 2.5, 2.5]")),
    "predict no value for two": predict(tensor([2], ""), answer=y([2], "float_val: [2, 2]")),
    "predict too many values": predict(tensor([1], "float_val: [1, 7]"), answer=y([1], "float_val: 2.5")),
    "predict D15 an empty batch": predict(tensor([0], ""), answer=y([0], "")),
    "predict infinities": predict(tensor([2], "float_val: [inf, -inf]"), answer=y([2], "float_val: [inf, -inf]")),
    "predict filtered": predict(f'{THREE} output_filter: "y"', answer=y([3], "float_val: [2.5, 3, 4.5]")),
    "predict another rank": predict(tensor([1, 2], "float_val: [1, 3]"), answer=y([1, 2], "float_val: [2.5, 3.5]")),
    # Row 50
    "predict without a spec": Case("Predict", THREE, **MISSING_SPEC),
    "predict without a name": predict(THREE, "", code=BAD, message="ModelSpec has no name"),
    "predict without a request": Case("Predict", "", **MISSING_SPEC),
    # D09
    "predict D09 model": predict(
        THREE, 'name: "foo"', code=GONE, message="Servable not found for request: Latest(foo)"
    ),
    "predict D09 version": predict(
        THREE, 'name: "H" version { value: 99 }', code=GONE, message="Servable not found for request: Specific(H, 99)"
    ),
    "predict D09 version 0": predict(THREE, 'name: "H" version { }', code=GONE, message="Specific(H, 0)"),
    "predict D09 version -1": predict(THREE, 'name: "H" version { value: -1 }', code=GONE, message="Specific(H, -1)"),
    "predict D09 label": predict(
        THREE, 'name: "H" version_label: "zzz"', code=BAD, message="Unrecognized servable version label: zzz"
    ),
    # model_servers/server_core.cc: a label that is set counts, also an empty one.
    "predict D09 empty label": predict(
        THREE, 'name: "H" version_label: ""', code=BAD, message="Unrecognized servable version label: "
    ),
    "predict D09 path": predict(THREE, 'name: "../H"', code=GONE, message="Latest(../H)"),
    "predict D09 NUL": predict(THREE, r'name: "H\000"', code=GONE, message="Servable not found"),
    "predict D09 case": predict(THREE, 'name: "h"', code=GONE, message="Latest(h)"),
    "predict a long name": predict(THREE, f'name: "{"n" * 2000}"', code=GONE, message="nnn...TRUNCATED"),
    # Row 15
    "predict D08 signature": predict(
        THREE, 'name: "H" signature_name: "nope"', code=LATER, message='Serving signature key "nope" not found.'
    ),
    # Row 47
    "predict D08 extra input": predict(
        f"{THREE} {tensor([1], '', name='z')}", code=BAD, message="Sent extra: {z}. Missing but required: {}."
    ),
    "predict D08 no input": predict("", code=BAD, message="Sent extra: {}. Missing but required: {x}."),
    "predict D08 other input": predict(tensor([1], "", name="z"), code=BAD),
    # Row 48
    "predict D08 output": predict(
        f'{THREE} output_filter: "nope"', code=BAD, message="output tensor alias not found in signature: nope"
    ),
    "predict D08 output twice": predict(
        f'{THREE} output_filter: ["y", "y"]', code=BAD, message="duplicate output tensor alias: y"
    ),
    # Row 49
    "predict D08 double": predict(DOUBLE, code=BAD, message="Expects arg[0] to be float but double is provided"),
    "predict D08 int": predict(tensor([1], "int_val: 1", "DT_INT32"), code=BAD, message="float but int32 is provided"),
    "predict D08 string": predict(
        tensor([1], 'string_val: "1"', "DT_STRING"), code=BAD, message="float but string is provided"
    ),
    "predict D08 half": predict(tensor([1], "half_val: 1", "DT_HALF"), code=BAD, message="float but half is provided"),
    # D11
    "predict D11 negative": predict(tensor([-1], ""), **LIE),
    "predict D11 rank": predict('inputs { key: "x" value { dtype: 1 tensor_shape { unknown_rank: true } } }', **LIE),
    "predict D11 short content": predict(tensor([2], r'tensor_content: "1234"'), **LIE),
    "predict D11 no dtype": predict(tensor([1], "float_val: 1", "DT_INVALID"), **LIE),
    "predict D11 resource": predict(tensor([1], "", "DT_RESOURCE"), **LIE),
    "predict D11 bomb": predict(tensor([2**40], "float_val: 1"), **LIE, ours=True),
    "predict D11 overflow": predict(tensor([2**62, 2**62], "float_val: 1"), **LIE),
    "predict D11 filled up": predict(tensor([1024, 4096], "float_val: 1"), **LIE, ours=True),
    "predict D14 batch": predict(
        tensor([1025], "float_val: 1"), code=BAD, message="at most 1024 are allowed", ours=True
    ),
    # Classify and Regress
    "classify": examples("Classify", "classify", [3, 4], answer=answered("classify", ups(3.5, 4))),
    "classify by label": examples(
        *("Classify", "classify", [3]), spec='name: "H" version_label: "lab"', answer=answered("classify", ups(3.5))
    ),
    "classify with a context": Case(
        "Classify",
        'model_spec { name: "H" signature_name: "classify" } '
        f"input {{ example_list_with_context {{ examples {{ }} context {{ {feature(3)} }} }} }}",
        answer=answered("classify", ups(3.5)),
    ),
    "classify nothing": examples("Classify", "classify", [], code=BAD, message="Input is empty."),
    "classify no input": Case(
        "Classify", 'model_spec { name: "H" signature_name: "classify" }', code=BAD, message="Input is empty."
    ),
    "classify no spec": Case("Classify", f"input {{ {listed([3])} }}", **MISSING_SPEC),
    "classify D09 model": examples("Classify", "classify", [3], spec='name: "foo"', code=GONE, message="Latest(foo)"),
    "classify D08 signature": examples(
        "Classify", "nope", [3], code=BAD, message="No signature was found with the name: nope"
    ),
    "classify D08 by predict": examples(
        "Classify", "serving_default", [3], code=BAD, message="No classification inputs found in SignatureDef"
    ),
    "classify D08 by regress": examples(
        "Classify", "regress", [3], code=BAD, message="Expected classification signature outputs to contain"
    ),
    "classify D08 no feature": Case(
        "Classify",
        'model_spec { name: "H" signature_name: "classify" } input { example_list { examples { } } }',
        code=BAD,
        message="Feature: x (data type: float) is required but could not be found.",
    ),
    "classify D08 feature of another type": Case(
        "Classify",
        'model_spec { name: "H" signature_name: "classify" } '
        f"input {{ example_list {{ examples {{ {feature(3, kind='int64_list')} }} }} }}",
        code=BAD,
        message="Data types don't match",
    ),
    "regress": examples(
        "Regress", "regress", [3, 4], answer=answered("regress", "regressions { value: 3.5 } regressions { value: 4 }")
    ),
    "regress nothing": examples("Regress", "regress", [], code=BAD, message="Input is empty."),
    "regress no spec": Case("Regress", f"input {{ {listed([3])} }}", **MISSING_SPEC),
    "regress D08 signature": examples(
        "Regress", "nope", [3], code=BAD, message="No signature was found with the name: nope"
    ),
    "regress D08 by classify": examples("Regress", "classify", [3], code=BAD, message="Expected one output Tensor."),
    # MultiInference
    "multi classify": multi(
        ("H", "classify", "classify"), answer=inferred("classify", f"classification_result {{ {ups(3.5)} }}")
    ),
    "multi regress": multi(
        ("H", "regress", "regress"), answer=inferred("regress", "regression_result { regressions { value: 3.5 } }")
    ),
    # servables/tensorflow/multi_inference_helper.cc takes an empty ModelSpec.
    "multi nothing": multi(code=BAD, message="ModelSpec has no name specified."),
    "multi twice": multi(
        *[("H", "classify", "classify")] * 2, code=BAD, message="Duplicate evaluation of signature: classify"
    ),
    "multi two models": multi(
        ("H", "classify", "classify"), ("J", "regress", "regress"), code=BAD, message="must access the same model name."
    ),
    "multi no name": multi(
        ("H", "classify", "classify"),
        ("", "regress", "regress"),
        code=BAD,
        message="ModelSpec with an empty model name.",
    ),
    # servables/tensorflow/multi_inference.cc feeds all input tensors.
    "multi two tensors": multi(
        *[("H", "classify", "classify"), ("H", "regress", "regress")],
        answer=" ".join(
            [
                inferred("classify", f"classification_result {{ {ups(3.5)} }}"),
                inferred("regress", "regression_result { regressions { value: 3.5 } }"),
            ]
        ),
    ),
    "multi D08 signature": multi(
        ("H", "nope", "classify"), code=BAD, message="Requested signature not found in model graph: nope"
    ),
    "multi D08 method": multi(
        ("H", "classify", "rank"),
        code="UNIMPLEMENTED",
        message="Unsupported signature method_name: tensorflow/serving/rank",
    ),
    # GetModelMetadata, row 50
    "metadata": metadata('"signature_def"'),
    "metadata by label": metadata('"signature_def"', 'model_spec { name: "H" version_label: "lab" }'),
    "metadata of nothing": metadata("[]", code=BAD, message="must specify at least one metadata_field"),
    "metadata foo": metadata('"foo"', code=BAD, message="Metadata field foo is not supported"),
    "metadata foo too": metadata('["signature_def", "foo"]', code=BAD, message="Metadata field foo is not supported"),
    "metadata no spec": metadata('"signature_def"', "", **MISSING_SPEC),
    "metadata D09": metadata('"signature_def"', 'model_spec { name: "foo" }', code=GONE, message="Latest(foo)"),
    # GetModelStatus
    "status": status('name: "H"', answer=AVAILABLE),
    "status of a version": status('name: "H" version { value: 123 }', answer=AVAILABLE),
    "status ignores labels": status('name: "H" version_label: "anything"', answer=AVAILABLE),
    "status D09": status('name: "foo"', code=GONE, message="Could not find any versions of model foo"),
    "status D09 version": status(
        'name: "H" version { value: 9 }', code=GONE, message="Could not find version 9 of model H"
    ),
    "status no spec": Case("GetModelStatus", "", **MISSING_SPEC),
    "reload is off": Case("HandleReloadConfigRequest", "", "PERMISSION_DENIED", "is disabled", ours=True),
}


def _in_full(case):
    """Return the case with the name of the model for H."""

    def named(text):
        return text.replace('"H"', '"half_plus_two"').replace("(H, ", "(half_plus_two, ").replace("model H", MODEL)

    return case._replace(request=named(case.request), message=named(case.message), answer=named(case.answer))


CASES = {name: _in_full(case) for name, case in _SHORT.items()}
