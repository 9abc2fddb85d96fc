"""The settings of `augment`, apart from it: reading a recipe must not wait for MONAI's import, some seconds."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


def _share(default: float, of: str) -> Any:
    return Field(default=default, ge=0, le=1, description=f"share of the crops that {of}")


def _low(default: float, what: str) -> Any:
    return Field(default=default, gt=0, le=1, description=f"smallest {what}")


def _high(default: float, what: str) -> Any:
    return Field(default=default, ge=1, description=f"largest {what}")


class AugmentConfig(BaseModel):
    """How often and how strongly labelled crops are changed. Every crop is drawn anew; the defaults are nnU-Net's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="false: crops stay as they are, all other fields are ignored")
    rotation_share: float = _share(0.2, "are turned")
    rotation_deg: float = Field(default=30.0, ge=0, le=180, description="largest turn about each axis, in degrees")
    scale_share: float = _share(0.2, "are magnified or shrunk")
    scale_low: float = _low(0.7, "magnification")
    scale_high: float = _high(1.4, "magnification")
    mirror: tuple[bool, bool, bool] = Field(
        default=(False, False, False), description="axes (D, H, W) flipped in half of the crops"
    )
    noise_share: float = _share(0.1, "get noise")
    noise_std: float = Field(
        default=0.3, ge=0, description="largest standard deviation of added noise, in those of the image"
    )
    blur_share: float = _share(0.2, "are blurred")
    blur_voxels: tuple[float, float] = Field(
        default=(0.5, 1.0), description="smallest and largest standard deviation of the Gaussian blur, voxels"
    )
    brightness_share: float = _share(0.15, "get brighter or darker")
    brightness: float = Field(default=0.25, ge=0, lt=1, description="largest change of brightness, as a share of it")
    contrast_share: float = _share(0.15, "get more or less contrast about their mean")
    contrast: float = Field(default=0.25, ge=0, lt=1, description="largest change of contrast, as a share of it")
    low_resolution_share: float = _share(0.25, "are shrunk and brought back, as if scanned coarser")
    low_resolution_zoom: float = _low(0.5, "share of the voxels left along each axis")
    gamma_share: float = _share(0.3, "get a gamma curve")
    inverted_gamma_share: float = _share(0.1, "get a gamma curve on the negative")
    gamma_low: float = _low(0.7, "exponent of the gamma curve")
    gamma_high: float = _high(1.5, "exponent of the gamma curve")

    @model_validator(mode="after")
    def _blur_runs_upwards(self) -> "AugmentConfig":
        if not 0 < self.blur_voxels[0] <= self.blur_voxels[1]:
            raise ValueError(f"blur_voxels = {list(self.blur_voxels)}: give the smallest above 0, then the largest")
        return self
