"""nnU-Net v2's preprocessing of a scan, from its NIfTI file to its blosc2 file, with the plan its planner would write.

Native spacing, no label. Its steps: read, crop to non-zero, normalise, (no) resampling, choose a filter, compress to
float32 .b2nd. Ours also checks the file's CRC and voxels, reorients, hashes the scan and what it stores, and syncs.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

Triple = tuple[int, int, int]


class NnunetPreprocessing:
    """For NIfTI files of one spacing, that of `scan`. `is_ct` chooses the normalisation, as a channel's name does."""

    def __init__(self, scan: Path, patch_DHW: Triple, is_ct: bool) -> None:
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.plans = PlansManager(_plans(scan, patch_DHW, is_ct))
        self.configuration = self.plans.get_configuration("3d_fullres")
        self.preprocessor = DefaultPreprocessor(verbose=False)

    def run(self, scan: Path, out: Path) -> None:
        """One scan into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        case = str(out / scan.name.removesuffix(".nii.gz"))
        self.preprocessor.run_case_save(case, [str(scan)], None, self.plans, self.configuration, {})


def _plans(scan: Path, patch_DHW: Triple, is_ct: bool) -> dict[str, Any]:
    image = nib.Nifti1Image.from_filename(scan)
    spacing_mm = [float(mm) for mm in image.header.get_zooms()[2::-1]]
    shape_DHW = [int(n) for n in image.shape[2::-1]]
    numbers: dict[str, float] = {}
    if is_ct:  # of the foreground, as its fingerprint has them: here of the body
        values = np.asarray(image.dataobj)
        values = values[values > -900]
        low, high = np.percentile(values, (0.5, 99.5))
        numbers = {"mean": float(values.mean()), "std": float(values.std())}
        numbers |= {"percentile_00_5": float(low), "percentile_99_5": float(high)}
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing_mm,
        "original_median_shape_after_transp": shape_DHW,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": numbers},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch_DHW),
                "median_image_size_in_voxels": shape_DHW,
                "spacing": spacing_mm,
                "normalization_schemes": ["CTNormalization" if is_ct else "ZScoreNormalization"],
                "use_mask_for_norm": [not is_ct],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {},
            }
        },
    }
