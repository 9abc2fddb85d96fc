"""The constants behind `scale.py`, each with its kind and source; the names end with their unit.

measured: on our CPU machine, the file and figure are named. document: a public document says so. assumed: nobody has
measured it here; change it and print the tables again.
"""

from typing import Literal, NamedTuple

from maetrain.train import memory
from maetrain.train.config import PretrainConfig
from maetrain.train.engine import BUCKET_ELEMENTS as BUCKET_ELEMENTS

Kind = Literal["measured", "document", "assumed"]


class Constant(NamedTuple):
    what: str
    value: float
    unit: str
    kind: Kind
    source: str


TABLE: list[Constant] = []


def _known(kind: Kind, what: str, value: float, unit: str, source: str) -> float:
    TABLE.append(Constant(what, value, unit, kind, source))
    return value


# in benchmarks/results/
_SHARDS, _MODEL, _GPU = "shards-cpu.md", "model-cpu.md", "model-gpu.md"
_CONTROL, _CURVE = "scale.md, second run", "scale.md, third run"

# voxels of a 128^3 crop by what one of the two loader workers reads a second
LOADER_VOXELS_PER_S = _known(
    "measured", "loader, CT", 314.6 / 2 * 128**3, "voxels/s and core", f"{_SHARDS}, second run: 314.6 crops/s of 128^3"
)
STORED_BYTES_PER_VOXEL = _known(
    "measured",
    "shards, CT",
    2 * 45.44 / 70.54,
    "bytes/voxel",
    f"{_SHARDS}: 45.44 MB stored, 70.54 MB as .npy of 2 bytes",
)
VOLUME_BYTES = _known("measured", "one CT scan in shards", 45.44e6, "bytes", f"{_SHARDS}, reader: ct")
FETCHED_PER_NEEDED = _known("measured", "bytes fetched / needed", 1.184, "", f"{_SHARDS}, s3: ct, 128^3")
ORDER_S_PER_SCAN = _known("measured", "order of an epoch", 0.628e-6, "s/scan", f"{_SHARDS}, index of a million scans")
INDEX_BYTES_PER_SCAN = _known(
    "measured", "index in memory", 548.0, "bytes/scan", f"{_SHARDS}, index of a million scans"
)
# the expected range of 5 normal values is 2.326 standard deviations
STEP_VARIATION = _known(
    "measured",
    "coefficient of variation of a step",
    (0.786 - 0.677) / 2.326 / 0.757,
    "",
    f"{_MODEL}, tumor 128^3 visible: 0.757 (0.677-0.786) s, 5 rounds, a shared CPU",
)
GROUP_START_S = _known(
    "measured",
    "start of a Ray Train group of 2",
    35.0,
    "s",
    "project notes, ray 2.60: 15-35 s for 2 workers on 2 cores",
)
FIRST_BATCH_S = _known("measured", "first batch after resume", 0.30, "s", f"{_SHARDS}, resume")
HASH_BYTES_PER_S = _known("measured", "SHA-256", 1.224e9, "bytes/s and core", _CONTROL)
RANK_FILE_S = _known("measured", "write a small rank file, fsync, hash", 4.458e-3, "s/file", f"{_CONTROL}, local disk")
OPEN_S = _known("measured", "open a rank file, read a tensor", 3.031e-4, "s/file", f"{_CONTROL}, page cache")
REMOVE_S = _known("measured", "remove a rank file", 1.484e-3, "s/file", f"{_CONTROL}, local disk")
ASSEMBLE_BYTES_PER_S = _known("measured", "rank files to full tensors", 1.423e9, "bytes/s and rank", _CONTROL)
COMMIT_S = _known("measured", "write the manifest, 1024 files and 100,000 persons", 0.08125, "s", _CONTROL)
MANIFEST_S = _known("measured", "read and send that manifest, sort its runs", 0.05791, "s", _CONTROL)
DESCRIPTION_S = _known("measured", "take in the description of a rank file", 5.19e-6, "s/file", _CONTROL)
FRESH_COPY_BYTES_PER_S = _known("measured", "copy to new host memory", 1.785e9, "bytes/s and rank", _CONTROL)
CURVE_TEXT_S = _known("measured", "join the curve's lines", 4.742e-7, "s/step", _CURVE)
CURVE_LINES_S = _known("measured", "cut the curve into lines", 9.634e-7, "s/step", _CURVE)
METRICS_S = _known("measured", "Ray's metrics, first rank, every step", 2.631e-5, "s/step", _CONTROL)
POST_S = _known("measured", "a message to the driver", 2.171e-4, "s", _CONTROL)

# of the peak below; the last is what a better kernel for each part could give
MFUS = (0.048, 0.087, 0.25)
MFU = _known(
    "measured",
    "model FLOP utilisation, one H100, eager (compiled: 0.087)",
    MFUS[0],
    "",
    f"{_GPU}: Tumor variant, 128^3, 17.8 TFLOP in 0.374 s (0.207 s)",
)

GPUS_PER_NODE = int(_known("document", "GPUs a node", 8, "", "NVIDIA DGX H100 user guide"))
PEAK_FLOPS_PER_S = _known("document", "H100 SXM, bf16, dense", 989e12, "FLOP/s", "NVIDIA H100 datasheet")
GPU_BYTES = _known("document", "H100 SXM memory", 80e9, "bytes", "NVIDIA H100 datasheet")
NVLINK_BYTES_PER_S = _known(
    "document", "NVLink 4, one direction", 450e9, "bytes/s and GPU", "NVIDIA H100 datasheet: 900 GB/s both ways"
)
FAST_NET_BYTES_PER_S = _known(
    "document",
    "8 x 400 Gb/s InfiniBand",
    8 * 50e9,
    "bytes/s and node",
    "NVIDIA DGX H100 user guide: ConnectX-7, one a GPU",
)
SLOW_NET_BYTES_PER_S = _known("document", "100 Gb/s Ethernet", 12.5e9, "bytes/s and node", "IEEE 802.3")
CORES_PER_NODE = _known("document", "CPU cores", 112, "a node", "NVIDIA DGX H100 user guide: 2 x 56")
NODE_DRIVE_BYTES = _known(
    "document", "NVMe drives", 8 * 3.84e12, "bytes/node", "NVIDIA DGX H100 user guide: 8 x 3.84 TB"
)
NODE_MEMORY_BYTES = _known("document", "memory", 2e12, "bytes/node", "NVIDIA DGX H100 user guide")
GETS_PER_S = _known(
    "document", "GET from one partitioned prefix", 5500, "1/s", "Amazon S3 user guide, Optimizing performance"
)
STORAGE_BYTES_PER_S_AND_TIB = _known(
    "document", "Lustre, SSD", 1e9, "bytes/s and TiB", "Amazon FSx for Lustre, PERSISTENT_2: 125 to 1000 MB/s/TiB"
)
ACTORS_PER_S = _known(
    "document", "Ray starts actors", 389, "1/s", "ray-project/ray release_logs/1.12.0/benchmarks/many_actors.json"
)
GPU_MTBF_S = _known(
    "document",
    "time between failures of one GPU",
    54 * 86400 * 16384 / 419,
    "s",
    "The Llama 3 Herd of Models (2024): 419 unexpected interruptions, 54 days, 16,384 H100",
)
BASE_LEARNING_RATE = _known("document", "MAE's base rate, per 256 crops", 1.5e-4, "", "He et al., MAE (CVPR 2022)")
PROVEN_BATCH = _known("document", "MAE's global batch", 4096, "crops", "He et al., MAE (CVPR 2022)")
FIRST_BYTE_S = _known(
    "document",
    "until a bucket's first byte",
    0.15,
    "s/request",
    "Amazon S3 user guide, Optimizing performance: 100 to 200 milliseconds",
)

LAUNCH_S = _known(
    "assumed",
    "CPU time a launched kernel, eager",
    10e-6,
    "s",
    f"none; 33e-6 on a virtual machine ({_GPU}, batch 4: 38 ms, 1146 kernels); torch.compile makes it less",
)
NET_EFFICIENCY = _known("assumed", "share of a link that collectives use", 0.8, "", "none")
HOP_S = _known("assumed", "latency a ring hop", 5e-6, "s", "none")
CUDA_PROCESS_BYTES = _known(
    "assumed", "CUDA context, cuBLAS, NCCL", memory.CUDA_PROCESS_BYTES, "bytes", "none: maetrain/train/memory.py"
)
DRIVE_READ_BYTES_PER_S = _known("assumed", "drives of a node, ranges of 0.2 MB", 40e9, "bytes/s", "none: 8 x 5 GB/s")
STORAGE_TIB = _known("assumed", "size of the shared file system", 48, "TiB", "none")
NODE_STORAGE_BYTES_PER_S = _known("assumed", "one node on the file system", 12.5e9, "bytes/s", "none: 100 Gb/s")
FILES_PER_S = _known("assumed", "file system creates files", 2000, "1/s", "none")
OPENS_PER_S = _known("assumed", "file system opens files", 20_000, "1/s", "none")
HOST_COPY_BYTES_PER_S = _known(
    "assumed", "GPU to host, before that copy", 25e9, "bytes/s and GPU", "none: half of PCIe 5 x16"
)
DETECT_S = _known("assumed", "until a dead node is noticed", 30, "s", "none")
PREEMPTIONS_PER_NODE_AND_H = _known("assumed", "preemptible node taken away", 0.05, "1/h", "none; spares stand by")
SCANS = _known("assumed", "archive", 100_000, "CT scans", "none")
RUN_CROPS = _known("assumed", "length of a run", 1e8, "crops", "none: 1000 epochs of one crop a scan")
MICRO_BATCH = int(_known("assumed", "crops a GPU and step", 2, "", "none"))
STOP_SHARE = _known("assumed", "time that checkpoints, or the start, may take", 0.05, "", "none")
CHECKPOINT_EVERY: int = PretrainConfig.model_fields["checkpoint_every"].default
STATE_BYTES = memory.MASTER + memory.MOMENTS  # of a parameter in a checkpoint
MESSAGES_PER_S = 5  # cluster/progress.py, throttled
DEEPSPEED_BUCKET_ELEMENTS = 500_000_000  # its default: more than the network has

STORAGE_BYTES_PER_S = STORAGE_TIB * STORAGE_BYTES_PER_S_AND_TIB
