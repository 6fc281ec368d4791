"""The study: everything a run depends on, as one frozen schema. Light to import; every layer shares its nouns."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from qray.point import CPU, CUDA, Point
from qray.study_data import Data as Data
from qray.study_model import ClipSpec as ClipSpec
from qray.study_model import Imported as Imported
from qray.study_model import Model as Model
from qray.study_model import Network
from qray.study_variant import INT8_METHODS as INT8_METHODS
from qray.study_variant import Device, Observer
from qray.study_variant import Variant as Variant
from qray.study_verdict import Fraction, PositiveInt, Section, Seed, Verdict

Split = Literal["TRAIN", "VAL", "TEST"]
Isa = Literal["native", "any", "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx", "neon", "neon-dotprod"]

#: Each is a record of a trial's, and planned with it.
Epochs = Annotated[int, Field(gt=0, le=100_000)]
Threads = Annotated[int, Field(gt=0, le=4096)]
T = TypeVar("T")
#: Of an empty list nothing could be drawn or measured.
Some = Annotated[tuple[T, ...], Field(min_length=1)]


class Augment(Section):
    """Random changes of a training clip, the same for all its frames; applied on the device."""

    shift_px: int = Field(4, ge=0, lt=2**31, description="largest shift in pixels, each direction")
    gain: float = Field(0.15, ge=0, lt=1, description="largest relative change of contrast")
    bias: float = Field(0.05, ge=0, lt=1, description="largest change of brightness, in units of full scale")


class Training(Section):
    """One fit. `precision: auto` takes bf16 autocast where the device runs bf16 natively.

    workers: processes that fit one model together, in step (PyTorch's DistributedDataParallel, by Ray Train), each on a
    GPU of its own where the cluster has any, else on a slot of its CPUs. `batch_size` is that of all together, and
    a multiple of them. Batches, augmentation and loss are those of one worker; what differs is the order in which
    floats are added, and batch-norm: on GPUs it normalises by the whole batch, as with one worker; on CPUs, and in a
    network that was imported as a graph, by the share of each worker, and the running statistics kept are those of
    the first. So the number is part of the keys: with another one a training begins anew. It holds for the FP32
    training and for its control (finetune); a trial of the sweep has one worker, since trials run side by side.
    """

    epochs: Epochs = 12
    batch_size: PositiveInt = 16
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["onecycle", "constant"] = "onecycle"
    warmup: Fraction = 0.2
    loss: Literal["huber", "mse"] = "huber"
    clip_grad_norm: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    augment: Augment | None = Augment()
    workers: int = Field(1, gt=0, le=4096)

    @field_validator("workers")
    @classmethod
    def _share_each_batch(cls, workers: int, others: ValidationInfo) -> int:
        batch_size = others.data.get("batch_size")
        if batch_size is not None and batch_size % workers:
            raise ValueError(f"training.batch_size ({batch_size}), which all workers share, must be a multiple of them")
        return workers

    def identity(self) -> dict[str, Any]:
        """What a unit depends on. `workers` is younger than the others, and there only where they are several, so that
        it changes no other key."""
        return self.model_dump(mode="json", exclude={"workers"} if self.workers == 1 else None)


class Sweep(Section):
    """The QAT sweep: `trials` settings drawn from the lists, each starting from the FP32 checkpoint, under
    successive halving: after 1, reduction_factor, reduction_factor^2, ... epochs the better 1/reduction_factor goes on.

    Every weight width in `weight_bits` gets its share of the trials; VAL MAE decides within each width.
    freeze_batch_norm_at and freeze_observers_at are fractions of the trial's epochs.
    """

    trials: int = Field(4, gt=0, le=10_000)
    weight_bits: Some[Literal[8, 4]] = (8, 4)
    lr: Some[Annotated[float, Field(gt=0)]] = (1e-4, 3e-4)
    epochs: Some[Epochs] = (1, 2)
    observer: Some[Literal["moving_average", "minmax"]] = ("moving_average", "minmax")
    freeze_batch_norm_at: Some[Fraction] = (0.0, 0.5)
    freeze_observers_at: Some[Fraction] = (0.5, 0.75)
    keep_fp32: Some[tuple[str, ...]] = ((),)
    reduction_factor: int = Field(2, ge=2, lt=2**31)
    max_concurrent: PositiveInt = 2

    @model_validator(mode="after")
    def _every_width_is_tried(self) -> Sweep:
        if self.trials < len(set(self.weight_bits)):
            raise ValueError(f"trials: {self.trials} is fewer than the weight widths {list(self.weight_bits)}")
        return self


class Target(Section):
    """What the artifacts of a study are to run on.

    isa: the CPU's instruction set. native: that of the machine of the run, on a cluster the least of its nodes' sets;
    any: every CPU (compiled code: with AVX2, or Arm's NEON). Without an INT8 dot product, and so for `any`, 8-bit
    weights keep to half their range, because products would overflow.
    """

    isa: Isa = "native"


class Calibration(Section):
    """TRAIN clips that static quantization observes, drawn over the whole range of the target."""

    clips: PositiveInt = 128
    batch_size: PositiveInt = 8


class Parity(Section):
    """What is asked of an INT8 artifact on VAL clips, which calibrated nothing.

    The root mean square of deployed - simulated predictions, which is what the engine's kernels add, may be at most
    `max_kernel_share` of that of simulated - FP32, which is what quantization costs; else the row is failed.
    """

    clips: PositiveInt = 64
    max_kernel_share: float = Field(0.5, gt=0)


class Serving(Section):
    """What a service sees, at each point: the time from the start of a process to its first prediction, and clips a
    second of several streams at once. A stream is a process that asks for its next prediction when it has the one
    before; each has the threads of the point, and all share the cores of the node."""

    cold_starts: int = Field(3, gt=0, le=100)
    streams: Some[Annotated[int, Field(gt=0, le=256)]] = (1, 2, 4)
    bound_ms: float = Field(250.0, gt=0, description="95 % of the calls of all streams must take no longer")
    seconds: float = Field(3.0, gt=0, le=86_400, description="per variant, point and number of streams")

    def identity(self) -> dict[str, Any]:
        """What is measured, which the bound does not change."""
        return self.model_dump(mode="json", exclude={"bound_ms"})


class MeasuredAt(Section):
    """A point at which the variants of its device are measured."""

    device: Device = "cpu"
    threads: Threads = 1
    batch: PositiveInt = 1


class Measure(Section):
    """Latency alone on the node, interleaved in blocks, and memory: of every variant at each (threads, batch), or at
    those of `points` that are on its device."""

    threads: Some[Threads] = (1,)
    batches: Some[PositiveInt] = (1,)
    points: Some[MeasuredAt] | None = None
    seconds: float = Field(2.0, gt=0, le=86_400, description="per variant, thread count and batch size")
    min_calls: PositiveInt = 30
    blocks: int = Field(10, ge=2, lt=2**31)
    warmup_calls: PositiveInt = 3
    serving: Serving | None = None

    @model_validator(mode="after")
    def _named_once(self) -> Measure:
        # What is left out counts as the default, so that a study as resolved, which leaves nothing out, can be read.
        lists = [
            name for name in ("threads", "batches") if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.points is not None and lists:
            raise ValueError(f"points names threads and batches of its own; leave out {' and '.join(lists)}")
        return self

    def of_a_point(self) -> dict[str, Any]:
        """What a measurement at one point depends on."""
        return self.model_dump(mode="json", exclude={"threads", "batches", "points", "serving"})


class Sensitivity(Section):
    """Per-layer sensitivity on VAL: each layer quantized alone, and all but it, by `tasks` tasks side by side."""

    clips: PositiveInt = 64
    weight_bits: Literal[8, 4] = 8
    observer: Observer = "histogram"
    tasks: int = Field(2, gt=0, le=1000)


class Evaluation(Section):
    """Evaluation of finished variants on VAL and TEST."""

    batch_size: PositiveInt = 16
    batch_timeout_s: float = Field(300.0, gt=0, le=1e6, description="a stream silent for longer ends with a diagnosis")


class Study(Section):
    """Everything a run depends on; the same study on the same machine gives the same MAE."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: Seed = 0
    data: Data = Data()
    clip: ClipSpec = ClipSpec()
    model: Network = Model()
    training: Training | None = Training()
    target: Target = Target()
    calibration: Calibration = Calibration()
    parity: Parity = Parity()
    variants: tuple[Variant, ...]
    sweep: Sweep | None = None
    evaluation: Evaluation = Evaluation()
    measure: Measure = Measure()
    sensitivity: Sensitivity | None = None
    verdict: Verdict = Verdict()

    @model_validator(mode="before")
    @classmethod
    def _what_is_imported_stays_as_it_is(cls, given: Any) -> Any:
        imported = isinstance(given, dict) and isinstance(given.get("model"), dict) and "folder" in given["model"]
        return {"training": None} | given if imported else given

    @model_validator(mode="after")
    def _is_consistent(self) -> Study:
        if self.training is None and isinstance(self.model, Model):
            raise ValueError("training: null leaves a model's weights as they are, and this one has none; name the "
                             "folder of an imported model: `model: FOLDER`")  # fmt: skip
        if isinstance(self.model, Imported) and self.training is None and self.model.fresh_head:
            raise ValueError("training is needed: the model was imported with --fresh-head, which knows nothing yet")
        if isinstance(self.model, Imported) and self.training is not None and not self.model.trainable:
            raise ValueError(f"training: null is needed: {self.model.untrainable}")
        names = [variant.name for variant in self.variants]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"variants named twice: {', '.join(doubled)}")
        devices = {variant.device for variant in self.variants}
        if self.reference_on(CPU) is None:
            raise ValueError("variants need {name: fp32, method: fp32, engine: eager}: all others are compared to it")
        if CUDA in devices and self.reference_on(CUDA) is None:
            wanted = f"{{name: fp32-{CUDA}, method: fp32, engine: eager, device: {CUDA}}}"
            raise ValueError(f"variants need {wanted}: the speed of all others on {CUDA} is compared to it")
        for at in self.measure.points or ():
            if at.device not in devices:
                raise ValueError(f"measure.points names {at.device}, and no variant is built for it")
        trained = [v.name for v in self.variants if v.of_sweep]
        if trained and self.sweep is None:
            raise ValueError(f"{', '.join(trained)}: QAT and its FP32 control come out of the sweep; add `sweep:`")
        for variant in self.variants:
            if variant.of_sweep and self.sweep and variant.weight_bits not in self.sweep.weight_bits:
                raise ValueError(f"{variant.name}: weight_bits {variant.weight_bits} is not in sweep.weight_bits")
        return self

    @property
    def reference(self) -> Variant:
        """The FP32 eager variant of the CPU, which every difference refers to."""
        found = self.reference_on(CPU)
        assert found is not None
        return found

    def reference_on(self, device: str) -> Variant | None:
        """The FP32 eager variant of a device, which every speed-up there refers to."""
        wanted = ("fp32", "eager", device, False)
        return next((v for v in self.variants if (v.method, v.engine, v.device, v.cuda_graph) == wanted), None)

    def points(self, device: str | None = None) -> list[Point]:
        """Where variants are measured, or those of a device: what `measure` names, else its lists on each device."""
        measure = self.measure
        named = [Point(device=at.device, threads=at.threads, batch=at.batch) for at in measure.points or ()]
        devices = sorted({variant.device for variant in self.variants})
        listed = [Point(device=on, threads=threads, batch=batch)
                  for on in devices for threads in measure.threads for batch in measure.batches]  # fmt: skip
        return [at for at in dict.fromkeys(named or listed) if device in (None, at.device)]

    @property
    def fit(self) -> Training:
        """How QAT fits, and its control, and the model where it is trained at all."""
        return self.training or Training()

    def canonical(self) -> dict[str, Any]:
        """JSON-ready form with every default filled in."""
        return self.model_dump(mode="json")
