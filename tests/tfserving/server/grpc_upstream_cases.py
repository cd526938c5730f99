"""Requests of TF Serving's own tests to the gRPC API of `examples` and `half_plus_two` of zoo.py, version 123.

Each case names the file and the test of TF Serving on which it rests. The signatures of `examples` return the features
of the tf.Examples in a request, as the session in those tests does.
"""

from google.protobuf import text_format
from grpc_cases import BAD, GONE, Case, feature, tensor
from tensorflow.core.example import example_pb2

TENSORFLOW, SERVERS = "servables/tensorflow/", "model_servers/"
CLASSIFIER, REGRESSOR = TENSORFLOW + "classifier_test.cc", TENSORFLOW + "regressor_test.cc"
CLASSIFICATION, REGRESSION = TENSORFLOW + "classification_service_test.cc", TENSORFLOW + "regression_service_test.cc"
MULTI, PREDICT = TENSORFLOW + "multi_inference_test.cc", TENSORFLOW + "predict_impl_test.cc"
MULTI_HELPER, PREDICT_UTIL = TENSORFLOW + "multi_inference_helper_test.cc", TENSORFLOW + "predict_util_test.cc"
METADATA, STATUS = TENSORFLOW + "get_model_metadata_impl_test.cc", SERVERS + "get_model_status_impl_test.cc"
INPUT, SERVER = TENSORFLOW + "util_test.cc", SERVERS + "tensorflow_model_server_test.py"
DEFAULT = "serving_default"
SPANISH = [{"dos": 2, "uno": 1}, {"cuatro": 4, "tres": 3}]


def spec(signature="", model="examples", rest=""):
    name = f'signature_name: "{signature}"' if signature else ""
    return f'model_spec {{ name: "{model}" {name} {rest} }}'


def answered(signature=DEFAULT):
    return spec(signature, rest="version { value: 123 }")


def example(scores):
    """The features "class" and "score" of a dict."""
    names = " ".join(f'value: "{name}"' for name in scores)
    values = " ".join(f"value: {value}" for value in scores.values())
    return (
        f'features {{ feature {{ key: "class" value {{ bytes_list {{ {names} }} }} }} '
        f'feature {{ key: "score" value {{ float_list {{ {values} }} }} }} }}'
    )


def with_context(context, *examples):
    items = " ".join(f"examples {{ {text} }}" for text in examples)
    return f"input {{ example_list_with_context {{ {items} context {{ {context} }} }} }}"


def inputs(*examples):
    return f"input {{ example_list {{ {' '.join(f'examples {{ {text} }}' for text in examples)} }} }}"


def classifications(*rows, labels=True, scores=True, plus=0):
    def one(name, score):
        return (f'label: "{name}" ' if labels else "") + (f"score: {score + plus}" if scores else "")

    texts = (" ".join(f"classes {{ {one(*item)} }}" for item in row.items()) for row in rows)
    return " ".join(f"classifications {{ {text} }}" for text in texts)


def regressions(*values):
    return " ".join(f"regressions {{ value: {value} }}" for value in values)


def classify(test, rest, signature="", result=None, file=CLASSIFIER, **expected):
    answer = "" if result is None else f"result {{ {result} }} {answered(signature or DEFAULT)}"
    return Case("Classify", f"{spec(signature)} {rest}", answer=answer, test=f"{file}, {test}", **expected)


def regress(test, rest, signature="regress", result=None, file=REGRESSOR, **expected):
    answer = "" if result is None else f"result {{ {result} }} {answered(signature)}"
    return Case("Regress", f"{spec(signature)} {rest}", answer=answer, test=f"{file}, {test}", **expected)


def rejected(*words):
    return {"code": BAD, "message": " ".join(words)}


BOTH = inputs(*map(example, SPANISH))
OUTPUTS = inputs(feature(2, "output"), feature(3, "output"))
ONE_OUTPUT = inputs(feature(2, "output"))
X_IS_2 = inputs(feature(2))
OTHERS = (
    'features { feature { key: "x" value { float_list { value: 80 } } } '
    'feature { key: "locale" value { bytes_list { value: "pt_BR" } } } '
    'feature { key: "age" value { float_list { value: 19 } } } }'
)
EMPTY = {
    "EmptyInput": "input { }",
    "EmptyExampleList": "input { example_list { } }",
    "EmptyExampleListWithContext": with_context(example({"dos": 2})),
}

CLASSIFY = [
    classify("ExampleList", BOTH, result=classifications(*SPANISH)),
    classify(
        *("ExampleListWithContext", with_context(example(SPANISH[0]), "", "")),
        result=classifications(SPANISH[0], SPANISH[0]),
    ),
    classify(
        *("ExampleListWithContext_DuplicateFeatures", with_context(example(SPANISH[0]), "", example(SPANISH[1]))),
        result=classifications(*SPANISH),
    ),
    classify("ClassesOnly", BOTH, "classes_only", classifications(*SPANISH, scores=False)),
    classify("ScoresOnly", BOTH, "scores_only", classifications(*SPANISH, labels=False)),
    classify(
        *("ZeroScoresArePresent", inputs(example({"minus": -1, "zero": 0, "one": 1})), "scores_only"),
        classifications({"minus": -1, "zero": 0, "one": 1}, labels=False),
    ),
    classify("ValidNamedSignature", BOTH, "output_plus_one", classifications(*SPANISH, plus=1)),
    classify("InvalidNamedSignature", BOTH, "regress", **rejected("Expected classification signature outputs")),
    classify("MalformedScores", BOTH, "rank_3", **rejected("[batch_size num_classes] but got [2,2,1]")),
    classify("MissingClassificationSignature", BOTH, "get_counter", **rejected("Expected one input Tensor.")),
    *[classify(test, rest, **rejected("Input is empty")) for test, rest in EMPTY.items()],
    classify("RunsFails", BOTH, "failing", **rejected("is not compatible with expected shape [?,77]")),
    classify(
        *("ClassesIncorrectTensorBatchSize", BOTH, "one_class_row"),
        **rejected("Expected classes output batch size of 2. Got: 1"),
    ),
    classify(
        *("ClassesIncorrectTensorType", BOTH, "float_classes"),
        **rejected("Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    ),
    classify(
        *("ScoresIncorrectTensorBatchSize", BOTH, "one_score_row"),
        **rejected("Expected scores output batch size of 2. Got: 1"),
    ),
    classify(
        *("ScoresIncorrectTensorType", BOTH, "string_scores"),
        **rejected("Expected scores Tensor of DT_FLOAT. Got: DT_STRING"),
    ),
    classify(
        *("MismatchedNumberOfTensorClasses", BOTH, "three_scores"),
        **rejected("Tensors class and score should match in dim_size(1). Got 2 vs. 3"),
    ),
    # PreProcessClassification: the outputs are counted before the input is looked up, the signature before the input.
    classify("MissingClassificationSignature", "", "three_outputs", **rejected("one or two output Tensors, found 3")),
    classify("MissingClassificationSignature", "", "other_names", **rejected("No classification inputs found")),
    Case("Classify", "", BAD, "Missing ModelSpec", test=f"{CLASSIFICATION}, InvalidModelSpec"),
    Case("Classify", "model_spec { }", BAD, "ModelSpec has no name", test=f"{CLASSIFICATION}, InvalidModelSpec"),
    Case("Classify", spec(model="foo"), GONE, "Latest(foo)", test=f"{CLASSIFICATION}, InvalidModelSpec"),
    classify("InvalidSignature", "", "invalid", file=CLASSIFICATION, **rejected("with the name: invalid")),
    classify(
        *("ClassificationSuccess", inputs(OTHERS), "classify_x_to_y"),
        *("classifications { classes { score: 42 } }", CLASSIFICATION),
    ),
    classify(
        *("testClassify", inputs(feature(2.0)), "classify_x_to_y"),
        *("classifications { classes { score: 3 } }", SERVER),
    ),
]

REGRESS = [
    regress("BasicExampleList", OUTPUTS, result=regressions(2, 3)),
    regress("BasicExampleListWithContext", with_context(feature(3, "output"), "", ""), result=regressions(3, 3)),
    regress("ValidNamedSignature", OUTPUTS, "regress_plus_one", regressions(3, 4)),
    regress("InvalidNamedSignature", OUTPUTS, "classes_only", **rejected("No regression outputs found")),
    regress(
        *("MalformedOutputs", OUTPUTS, "regress_rank_2"),
        **rejected("either [batch_size] or [batch_size, 1] but got [2,10]"),
    ),
    *[regress(test, rest, **rejected("Input is empty")) for test, rest in EMPTY.items()],
    regress("RunsFails", inputs(feature(2)), **rejected("")),
    regress(
        *("UnexpectedOutputTensorSize", ONE_OUTPUT, "regress_two_values"),
        **rejected("Input batch size did not match output batch size: 1 vs. 2"),
    ),
    regress(
        *("UnexpectedOutputTensorType", ONE_OUTPUT, "regress_string"),
        **rejected("Expected output Tensor of DT_FLOAT.  Got: DT_STRING"),
    ),
    regress("MissingRegressionSignature", OUTPUTS, "get_counter", **rejected("Expected one input Tensor.")),
    regress("MissingRegressionSignature", "", "three_outputs", **rejected("Expected one output Tensor.")),
    regress("MissingRegressionSignature", "", "other_names", **rejected("No regression inputs found")),
    Case("Regress", "", BAD, "Missing ModelSpec", test=f"{REGRESSION}, InvalidModelSpec"),
    Case("Regress", "model_spec { }", BAD, "ModelSpec has no name", test=f"{REGRESSION}, InvalidModelSpec"),
    Case("Regress", spec(model="foo"), GONE, "Latest(foo)", test=f"{REGRESSION}, InvalidModelSpec"),
    regress("InvalidSignature", "", "invalid", file=REGRESSION, **rejected("with the name: invalid")),
    regress("RegressionSuccess", inputs(OTHERS), "regress_x_to_y", regressions(42), REGRESSION),
    regress("testRegress", inputs(feature(2.0)), "regress_x_to_y", regressions(3), SERVER),
    # The features of an example precede those of the context.
    regress(
        *("ExampleListWithOverridingContext", with_context(feature(33, "output"), "", feature(64, "output"))),
        *("regress", regressions(33, 64), INPUT),
    ),
    regress("Empty_KindNotSet", "", file=INPUT, **rejected("Input is empty")),
    regress(
        *("ExampleListWithContext_NoContext", with_context("", feature(2, "output"))),
        *("regress", regressions(2), INPUT),
    ),
]


def multi(test, *tasks, rest=X_IS_2, results=(), file=MULTI, **expected):
    texts = " ".join(f'tasks {{ {text} method_name: "tensorflow/serving/{method}" }}' for text, method in tasks)
    answer = " ".join(f"results {{ {text} }}" for text in results)
    return Case("MultiInference", f"{texts} {rest}", answer=answer, test=f"{file}, {test}", **expected)


REGRESS_X = (spec("regress_x_to_y"), "regress")
REGRESSED = f"{answered('regress_x_to_y')} regression_result {{ {regressions(3)} }}"
CLASSIFIED = f"{answered('classify_x_to_y')} classification_result {{ classifications {{ classes {{ score: 3 }} }} }}"
MULTI_INFERENCE = [
    multi("MissingInputTest", REGRESS_X, rest="", **rejected("Input is empty")),
    multi("UndefinedSignatureTest", (spec("none"), "regress"), **rejected("signature not found")),
    multi(
        *("InconsistentModelSpecsInRequestTest", REGRESS_X, (spec("regress_x_to_y", "none"), "regress")),
        **rejected("must access the same model name"),
    ),
    multi(
        *("EvaluateDuplicateSignaturesTest", REGRESS_X, REGRESS_X),
        **rejected("Duplicate evaluation of signature: regress_x_to_y"),
    ),
    multi(
        *("UsupportedSignatureTypeTest", (spec(DEFAULT), "predict")),
        code="UNIMPLEMENTED",
        message="Unsupported signature method_name: tensorflow/serving/predict",
    ),
    multi("ValidSingleSignatureTest", REGRESS_X, results=[REGRESSED]),
    multi(
        *("MultipleValidRegressSignaturesTest", REGRESS_X, (spec("regress_x_to_y2"), "regress")),
        results=[REGRESSED, f"{answered('regress_x_to_y2')} regression_result {{ {regressions(4)} }}"],
    ),
    multi(
        *("RegressAndClassifySignaturesTest", REGRESS_X, (spec("classify_x_to_y"), "classify")),
        results=[REGRESSED, CLASSIFIED],
    ),
    multi(
        *("ModelSpecOverride", (spec("regress_x_to_y", "none"), "regress")),
        code=GONE,
        message="Latest(none)",
        file=MULTI_HELPER,
    ),
    # The signatures are checked before the input.
    multi("MissingInputTest", (spec("classes_only"), "regress"), rest="", **rejected("No regression outputs found")),
    multi(
        "testMultiInference",
        REGRESS_X,
        (spec("classify_x_to_y"), "classify"),
        results=[REGRESSED, CLASSIFIED],
        file=SERVER,
    ),
]

HALF, X, Y = spec(model="half_plus_two", rest="version { value: 123 }"), tensor([], "float_val: 2"), "float_val: 3"


def predict(test, request, file=PREDICT, **expected):
    return Case("Predict", request, test=f"{file}, {test}", **expected)


ANY = tensor([1], 'string_val: "any"', "DT_STRING")
OTHER_INPUTS = tensor([1], 'string_val: "any"', "DT_STRING", "key1") + tensor([1], "float_val: 1", name="key2")
_CONTENT = text_format.Parse(feature(2), example_pb2.Example()).SerializeToString()
_ESCAPED = "".join(f"\\{byte:03o}" for byte in _CONTENT)
SERIALIZED = tensor([1], f'string_val: "{_ESCAPED}"', "DT_STRING", "inputs")
PREDICTIONS = [
    predict("MissingOrEmptyModelSpec", "", code=BAD, message="Missing ModelSpec"),
    predict("MissingOrEmptyModelSpec", "model_spec { }", code=BAD, message="ModelSpec has no name specified."),
    predict("MissingOrEmptyModelSpec", spec(model="test"), code=GONE, message="Latest(test)"),
    predict("EmptyInputList", HALF, **rejected("Missing but required: {x}")),
    predict(
        *("InputTensorsDontMatchModelSpecInputs", f"{HALF} {OTHER_INPUTS}", PREDICT_UTIL),
        **rejected("2!=1 len({key1,key2}) != len({x}). Sent extra: {key1,key2}. Missing but required: {x}."),
    ),
    predict(
        *("PredictionInvalidTensor", f"{HALF} {tensor([], 'bool_val: true', 'DT_BOOL')}", PREDICT_UTIL),
        **rejected("Expects arg[0] to be float but bool is provided"),
    ),
    predict(
        *("OutputFiltersDontMatchModelSpecOutputs", f'{HALF} {X} output_filter: "output_filter"'),
        **rejected("output tensor alias not found in signature: output_filter"),
    ),
    predict("OutputFiltersDontMatchModelSpecOutputs", f'{HALF} {X} output_filter: "y"'),
    predict(
        *("OutputFiltersDontMatchModelSpecOutputs", f'{HALF} {X} output_filter: ["y", "y"]'),
        **rejected("duplicate output tensor alias: y"),
    ),
    predict(
        *("InputTensorsHaveWrongType", f"{HALF} {ANY}"),
        **rejected("to be float but string is provided"),
    ),
    predict(
        *("PredictionSuccess", f"{HALF} {X}"),
        answer='model_spec { name: "half_plus_two" version { value: 123 } signature_name: "serving_default" } '
        'outputs { key: "y" value { dtype: DT_FLOAT tensor_shape { } float_val: 3 } }',
    ),
    # Predict runs the signatures for Regress and Classify, too, and returns their tensors.
    *[
        predict(
            *(test, f"{spec(signature)} {SERIALIZED}"),
            answer=f'{answered(signature)} outputs {{ key: "{name}" value {{ dtype: DT_FLOAT '
            "tensor_shape { dim { size: 1 } dim { size: 1 } } float_val: 3 } }",
        )
        for test, signature, name in [
            ("PredictionWithNamedRegressionSignature", "regress_x_to_y", "outputs"),
            ("PredictionWithNamedClassificationSignature", "classify_x_to_y", "scores"),
        ]
    ],
]

INFORMATION = [
    Case("GetModelMetadata", "", BAD, "Missing ModelSpec", test=f"{METADATA}, EmptyOrInvalidMetadataFieldList"),
    Case("GetModelMetadata", 'metadata_field: "some_stuff"', BAD, test=f"{METADATA}, EmptyOrInvalidMetadataFieldList"),
    *[
        Case(
            *("GetModelMetadata", f'{text} metadata_field: "signature_def"', code, message),
            test=f"{METADATA}, MissingOrEmptyModelSpec",
        )
        for text, code, message in [
            ("", BAD, "Missing ModelSpec"),
            ("model_spec { }", BAD, "ModelSpec has no name specified."),
            (spec(model="test"), GONE, "Latest(test)"),
        ]
    ],
    Case("GetModelStatus", "", BAD, "Missing ModelSpec", test=f"{STATUS}, MissingOrEmptyModelSpecFailure"),
    Case("GetModelStatus", "model_spec { }", GONE, "of model ", test=f"{STATUS}, MissingOrEmptyModelSpecFailure"),
    Case(
        *("GetModelStatus", spec(model="none"), GONE, "Could not find any versions of model none"),
        test=f"{STATUS}, InvalidModelNameFailure",
    ),
    Case(
        *("GetModelStatus", spec(rest="version { value: 9 }"), GONE, "Could not find version 9 of model examples"),
        test=f"{STATUS}, InvalidModelVersionFailure",
    ),
    *[
        Case(
            *("GetModelStatus", spec(rest=rest)),
            answer="model_version_status { version: 123 state: AVAILABLE status { } }",
            test=f"{STATUS}, {test}",
        )
        for rest, test in (("", "AllVersionsSuccess"), ("version { value: 123 }", "SingleVersionSuccess"))
    ],
]


def _by_name(cases):
    names = [f"{case.method} {case.test.partition(', ')[2]}" for case in cases]
    return {
        f"{name} {names[:i].count(name) + 1}": case for i, (name, case) in enumerate(zip(names, cases, strict=True))
    }


CASES = _by_name([*CLASSIFY, *REGRESS, *MULTI_INFERENCE, *PREDICTIONS, *INFORMATION])
COUNTER = [  # signature, delta and expected output of `PredictionWithCustomizedSignatures`, in this order
    ("get_counter", None, 0.0),
    ("incr_counter", None, 1.0),
    ("reset_counter", None, 0.0),
    ("incr_counter", None, 1.0),
    ("incr_counter_by", 3.0, 4.0),
]
