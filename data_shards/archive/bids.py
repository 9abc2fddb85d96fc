"""The BIDS layout (dataset_description.json): sub-*/[ses-*/]anat|ct|pet, all unlabelled.

Left out: time series and diffusion (func, dwi, perf: 4-D), field maps, masks, and what others derived (derivatives/,
sourcedata/, code/), because no folder of these starts with "sub-" at the root. A file's name tells person, session
and modality, so no sidecar is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_shards.archive.cases import NIFTI_ENDINGS, FoundCase, is_volume_file, stem

_DATA_FOLDERS = ("anat", "ct", "pet")
_NO_SCANS = ("mask", "defacemask", "dseg", "probseg")
_MODALITIES = {"ct": "CT", "pet": "PT"} | dict.fromkeys(
    (
        "T1w", "T2w", "T1rho", "T1map", "T2map", "T2star", "T2starw", "T2starmap", "R1map", "R2map", "R2starmap",
        "FLAIR", "FLASH", "PD", "PDw", "PDmap", "PDT2", "PDT2map", "PDwT2w", "inplaneT1", "inplaneT2", "angio",
        "SWImagandphase", "UNIT1", "MP2RAGE", "MPM", "MTS", "MTR", "MTRmap", "MTsat", "MEGRE", "MESE", "VFA", "IRT1",
        "Chimap", "M0map", "MWFmap",
    ),
    "MR",
)  # fmt: skip


def is_bids(root: Path) -> bool:
    return (root / "dataset_description.json").is_file() and any(root.glob("sub-*"))


def bids_cases(root: Path) -> Iterator[FoundCase]:
    """One case per NIfTI file, named as the file, in the order of the names."""
    for subject in sorted(root.glob("sub-*")):
        for place in (subject, *sorted(subject.glob("ses-*"))):
            for folder in (place / name for name in _DATA_FOLDERS):
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    suffix = stem(path.name).rpartition("_")[2]
                    if not is_volume_file(path.name) or not path.name.lower().endswith(NIFTI_ENDINGS):
                        continue
                    if suffix in _NO_SCANS:
                        continue
                    session = re.search(r"(?:^|_)(ses-[^_]+)_", path.name)
                    yield FoundCase(
                        name=path.name,
                        image_paths=(path,),
                        subject=subject.name,
                        session=session[1] if session else place.name if place != subject else "",
                        modality=_MODALITIES.get(suffix, ""),
                    )
