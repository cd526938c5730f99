"""What does a failed request say, in gRPC's words and as an HTTP code?"""

from keras_committee.errors import ExportError

# The canonical codes, in the order of their numbers: CODES[3] == "INVALID_ARGUMENT".
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

# TF Serving, model_servers/http_rest_api_handler.cc and http_server.cc; what is missing here is 500.
_HTTP = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_LONGEST = 1024  # bytes of a gRPC message; TF Serving cuts at the same place


class StatusError(ExportError):
    """What TensorFlow or the server refuses, in their words.

    Attributes:
        code: Name of a gRPC status, such as "INVALID_ARGUMENT".
        message: The exact text that a client sees.
        http: The HTTP code of the same failure: 400 for INVALID_ARGUMENT.
    """

    def __init__(self, code: str, message: str, http: int | None = None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http = http or _HTTP.get(code, 500)

    @property
    def number(self) -> int:
        """The number of the code: 3 is INVALID_ARGUMENT."""
        return CODES.index(self.code)


def truncated(message: str) -> str:
    """The message as a gRPC answer carries it: at most 1,024 bytes, and it says when more was cut off."""
    encoded = message.encode()
    if len(encoded) <= _LONGEST:
        return message
    return encoded[:_LONGEST].decode(errors="ignore") + "...TRUNCATED"
