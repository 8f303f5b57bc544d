"""Tables labels.csv → one row of 0 and 1 for each picture.

labels = read_labels(pictures, tables)
labels.values                                       # uint8 [N, L], or None
"""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np

from training.data.decode import read_entry
from training.data.errors import DataError
from training.data.sources import LABELS, Entry, first_line

MAX_LABEL_BYTES = 64 * 2**20  # of one labels.csv
MAX_LABELS = 1000  # columns of all labels.csv together
MAX_FOLDERS = 32  # around a picture that labels.csv may leave out


def _read_table(entry: Entry, wanted: set[str]) -> tuple[list[str], dict[str, bytes]]:
    """Read a labels.csv: column names, and each wanted file's row, a byte of 0 or 1 per label.

    `wanted` holds names without folders; rows of other files are checked and forgotten.
    """
    where = entry.path if entry.member is None else f"{entry.path}/{entry.member}"
    if entry.size > MAX_LABEL_BYTES:
        raise DataError(f"{where} is over {MAX_LABEL_BYTES >> 20} MiB: split it or drop columns")
    try:
        return _parse_table(read_entry(entry), wanted, where)
    except DataError:
        raise
    except Exception as error:  # of the disk, of zipfile, or no UTF-8
        raise DataError(
            f"{where} cannot be read as UTF-8 text ({first_line(error)}): save it anew"
        ) from error


def _parse_table(data: bytes, wanted: set[str], where: str) -> tuple[list[str], dict[str, bytes]]:
    """Parse the bytes of a labels.csv for `_read_table`."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
        if len(header) > MAX_LABELS + 1:
            raise csv.Error(f"over {MAX_LABELS:,} labels, drop columns")
        if header[:1] != ["file"] or len(header) < 2 or len(set(header)) != len(header):
            raise csv.Error("the header must be 'file' and then one name per label, none twice")
        rows: dict[str, bytes] = {}
        for row in filter(None, reader):
            _check_row(row, header, rows)
            if row[0].rpartition("/")[2] in wanted:
                rows[row[0]] = bytes(map(int, row[1:]))
    except csv.Error as error:
        line = max(reader.line_num, 1)
        raise DataError(f"{where}, line {line}: {error}; mend that line") from error
    return header[1:], rows


def _check_row(row: list[str], header: list[str], rows: dict[str, bytes]) -> None:
    """Raise csv.Error for a row that does not fit the header or the rows before it."""
    if len(row) != len(header):
        raise csv.Error(f"{len(row)} columns where the header has {len(header)}")
    if not set(row[1:]) <= {"0", "1"}:
        raise csv.Error("a label is neither 0 nor 1")
    if row[0] in rows:
        raise csv.Error(f"{row[0]} has a row already")


class Labels(NamedTuple):
    """The labels of all pictures."""

    names: tuple[str, ...]
    values: np.ndarray | None  # uint8 [N, L]
    known: np.ndarray  # bool [N]: the picture has a row


def read_labels(pictures: list[Entry], tables: list[Entry]) -> Labels:
    """Match the rows of every labels.csv to the pictures of its group, by name."""
    wanted: dict[str, set[str]] = {table.group: set() for table in tables}
    for picture in pictures:
        if picture.group in wanted:
            wanted[picture.group].add(picture.name.rpartition("/")[2])
    names: dict[str, int] = {}
    rows: dict[str, dict[str, tuple[list[int], bytes]]] = {table.group: {} for table in tables}
    for table in tables:
        header, values = _read_table(table, wanted[table.group])
        columns = [names.setdefault(name, len(names)) for name in header]
        if len(names) > MAX_LABELS:
            raise DataError(f"{table.path} has over {MAX_LABELS:,} labels: drop columns")
        if twice := rows[table.group].keys() & values.keys():
            raise DataError(f"{min(twice)} is labelled twice in {table.group}: keep one {LABELS}")
        rows[table.group].update((file, (columns, row)) for file, row in values.items())
    known = np.zeros(len(pictures), bool)
    if not names:
        return Labels((), None, known)
    matrix = np.zeros((len(pictures), len(names)), np.uint8)
    for slot, picture in enumerate(pictures):
        # A zip may wrap its files in a folder that labels.csv does not know: try every tail.
        parts = picture.name.split("/")[-MAX_FOLDERS:]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        here = rows.get(picture.group, {})
        if found := next((here[tail] for tail in tails if tail in here), None):
            columns, row = found
            matrix[slot, columns] = np.frombuffer(row, np.uint8)
            known[slot] = True
    return Labels(tuple(names), matrix, known)
