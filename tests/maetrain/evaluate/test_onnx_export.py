"""The network as ONNX gives torch's logits in onnxruntime, and its file says what a caller must know."""

import json
from importlib import util
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate import onnx_export
from maetrain.evaluate.model_folder import ModelContract, load_model, save_model
from maetrain.evaluate.onnx_export import compare, export_onnx
from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer

from ..small import noise

# two stages: the exporter's time grows with the network
TINY = NNFormerConfig(
    in_channels=2,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(1, 2),
    windows=((2, 3, 2), (2, 2, 2)),
    down_strides=((2, 2, 2),),
    decoder_depths=(2,),
    decoder_heads=(1,),
)
WINDOW = (13, 8, 18)  # odd: padded to windows, shifted and cut again
FEW_TOKENS = (4, 4, 4)  # our convolutions go another way for few tokens, by the batch's size


def model(folder: Path, shaken: float, window_DHW: tuple[int, int, int] = WINDOW) -> Path:
    """A network as it is drawn (shaken 0), or with every weight moved, as training does."""
    torch.manual_seed(4)
    network = NNFormer(TINY, 3)
    for i, parameter in enumerate(network.parameters()):
        parameter.data.add_(shaken * noise(*parameter.shape, seed=i))
    contract = ModelContract(
        architecture=TINY,
        class_names=("background", "liver", "tumour"),
        channel_names=("T1", "FLAIR"),
        window_DHW=window_DHW,
        preprocess=PreprocessConfig(intensity="zscore", spacing_mm=(1.0, 2.0, 1.5)),
        made_by={"arm": "mae"},
    )
    save_model(folder, network, contract)
    return folder


@torch.no_grad()
@pytest.mark.runs
@pytest.mark.parametrize(("shaken", "window_DHW"), [(0.0, FEW_TOKENS), (0.15, WINDOW)], ids=["drawn", "trained-like"])
def test_onnxruntime_gives_torchs_logits(tmp_path: Path, shaken: float, window_DHW: tuple[int, int, int]) -> None:
    folder, out = model(tmp_path / "model", shaken, window_DHW), tmp_path / "new" / "network.onnx"
    told = export_onnx(folder, out)
    assert told < 1e-4 and [path.name for path in out.parent.iterdir()] == [out.name]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 2, *window_DHW]
    network, contract = load_model(folder)
    for batch in (1, 2, 9):
        windows = noise(batch, 2, *window_DHW, seed=10 + batch)
        want = network(windows)[0]
        got = torch.from_numpy(session.run(["logits"], {"window": windows.numpy()})[0])
        assert float(want.std()) > 1e-3 and got.shape == want.shape
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    told_by_file = {p.key: json.loads(p.value) for p in onnx.load(out).metadata_props if p.key in FACTS}
    assert told_by_file == {name: contract.model_dump(mode="json")[name] for name in FACTS}


FACTS = ("class_names", "channel_names", "window_DHW", "preprocess", "made_by", "weights_sha256")


@pytest.mark.runs
def test_a_file_with_other_outputs_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(onnxruntime.InferenceSession):
        def run(self, *words: object) -> list:
            return [logits + 0.01 for logits in super().run(*words)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Off)
    with pytest.raises(InputError, match="onnxruntime's logits differ from torch's by 0.01"):
        export_onnx(model(tmp_path / "model", 0.0, FEW_TOKENS), tmp_path / "out" / "network.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_package_is_one_line_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else util.find_spec(name))
    with pytest.raises(InputError, match=r"needs the package onnxscript: pip install 'maetrain\[onnx\]'"):
        export_onnx(model(tmp_path / "model", 0.0), tmp_path / "network.onnx")


def test_nan_is_no_small_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotANumber:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: list[str], fed: dict) -> list:
            window = fed["window"]
            return [torch.full((len(window), 3, *window.shape[2:]), torch.nan).numpy()]

    monkeypatch.setattr(onnxruntime, "InferenceSession", NotANumber)
    with pytest.raises(InputError, match="differ from torch's by nan"):
        compare(*load_model(model(tmp_path / "model", 0.0)), tmp_path / "network.onnx")
