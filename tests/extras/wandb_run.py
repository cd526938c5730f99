"""Check that an offline run of Weights & Biases has each row of the run's histories once: `python wandb_run.py RUN`."""

import json
import struct
import sys
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

from keras_committee.run import Run

BLOCK, HEADER = 32768, 7  # bytes; the file is a log of LevelDB: records in chunks that never cross a block


def read_records(file: Path) -> list[Record]:
    """Return the records of a `.wandb` file."""
    content, position, parts, records = file.read_bytes(), HEADER, b"", []
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last of its chunks
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history_rows(folder: Path) -> list[dict]:
    """Return the rows of all offline runs in a folder, in order."""
    records = [record for file in sorted(folder.glob("offline-run-*/*.wandb")) for record in read_records(file)]
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


if __name__ == "__main__":
    run = Run(Path(sys.argv[1]))
    rows = history_rows(run.path / "wandb")
    for index in run.finished_members():
        name = f"member_{index}/validation_accuracy"
        sent = [(row[f"member_{index}/epoch"], row[name]) for row in rows if name in row]
        expected = [(row["epoch"], row["validation_accuracy"]) for row in run.member(index).read_history()]
        if not expected or sent != expected:
            sys.exit(
                f"error: member {index} has {len(sent)} rows in the offline run and {len(expected)} in its history"
            )
