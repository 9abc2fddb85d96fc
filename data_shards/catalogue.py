"""The catalogue of a build: one row for every scan the archive was found to hold, and what became of it.

OUT/catalogue.parquet, for people and for pandas or DuckDB; nothing reads it but `verify`, which checks its hash. It
says no more about persons than the index does: keys where names are hashed, no dates.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.archive.layout import Archive
from data_shards.formats.index import Quarantined
from data_shards.formats.volumes import VolumeTable

CATALOGUE_NAME = "catalogue.parquet"
SCHEMA = pa.schema(
    {
        "case": pa.string(),
        "subject": pa.string(),
        "session": pa.string(),
        "modality": pa.string(),
        "source": pa.string(),
        "state": pa.string(),  # built, duplicate or quarantined
        "reason": pa.string(),  # of a quarantine; of a duplicate the case that has the same voxels
        "shape_XYZ": pa.list_(pa.int32()),  # as in the source
        "spacing_XYZ_mm": pa.list_(pa.float64()),
        "orientation": pa.string(),  # of the source's axes, e.g. "LPS"
        "voxel_sha256": pa.string(),
        "shard": pa.string(),
    }
)


def catalogue(
    archive: Archive,
    volumes: VolumeTable,
    duplicates: Sequence[tuple[str, str]],
    quarantined: Sequence[Quarantined],
) -> bytes:
    """The Parquet file, rows by case. `volumes` are all built ones, duplicates too."""
    same_as, unusable = dict(duplicates), {entry.case: entry for entry in quarantined}
    rows = {}
    for record in volumes:
        affine = np.array(record.preprocess["affine_4x4"])
        rows[record.case] = {
            "source": record.source,
            "state": "duplicate" if record.case in same_as else "built",
            "reason": same_as.get(record.case),
            "shape_XYZ": record.preprocess["shape_XYZ"],
            "spacing_XYZ_mm": nib.affines.voxel_sizes(affine).tolist(),
            "orientation": "".join(nib.aff2axcodes(affine)),
            "voxel_sha256": record.voxel_sha256,
            "shard": None if record.case in same_as else record.shard,
        }
    for case, entry in unusable.items():
        rows[case] = {"source": entry.path, "state": "quarantined", "reason": entry.reason}
    found = [
        {"case": c.case, "subject": c.subject, "session": c.session, "modality": c.modality, **rows[c.case]}
        for c in archive.cases
        if c.case in rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(found, schema=SCHEMA), sink, compression="zstd", write_statistics=False)
    return sink.getvalue().to_pybytes()
