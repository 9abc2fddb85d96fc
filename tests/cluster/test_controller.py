"""What Ray Train's controller is told."""

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import RayTrainCallback

from cluster.controller import GroupCallback, SigtermCallback, callbacks


@pytest.mark.parametrize("kind", [GroupCallback, SigtermCallback])
def test_ray_asks_each_callback_itself(kind: type[RayTrainCallback]) -> None:
    """It wraps those that are a UserCallback, and then calls no other hook of theirs."""
    trainer = TorchTrainer(
        lambda: None,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(callbacks=callbacks(None, 1.0)),
    )
    found = [callback for callback in trainer._create_default_callbacks() if isinstance(callback, kind)]
    assert len(found) == 1
