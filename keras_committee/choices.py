"""Names that command-line options and library functions accept, importable without TensorFlow and NumPy."""

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "saturate",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
STRATEGIES = ("auto", "single", "mirrored", "multiworker")
SEARCH_METHODS = ("auto", "exhaustive", "greedy", "evolutionary")
OBJECTIVES = ("accuracy", "nll", "brier")
SELECTION_HEADS = ("geometric_mean", "arithmetic_mean", "majority_vote")
SPLITS = ("test", "validation", "train")
SET_METHODS = ("lac", "aps", "raps")  # of prediction sets
