"""Tables I, II and III of the first paper, typed in, and what its text says of Figures 3 to 6.

Source: Barrak, Trabelsi, Jaafar, Petrillo, "Exploring the Impact of Serverless Computing on Peer To Peer Training
Machine Learning", section V. The figures are drawings without printed values: of them only what the text says is here.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerless.cost.paper import instance_cost_usd, serverless_cost_usd

#: Of Tables II and III: VGG-11 on MNIST, 60,000 images among four peers.
PEERS = 4
SAMPLES_PER_PEER = 15_000


@dataclass(frozen=True, kw_only=True)
class Serverless:
    """A column of Table II: a t2.small that lets Lambda compute one batch per worker."""

    batch_size: int
    batches: int
    memory_mb: int
    """Of a worker; "set to match the minimal functional requirements for gradient computation"."""
    seconds: float
    """Time to compute gradients, of a peer and epoch."""
    lambda_usd_per_second: float
    usd: float
    """Estimated cost per peer, as printed."""
    ec2_usd_per_second: float = 0.00000639
    instance_type: str = "t2.small"

    def formula_usd(self) -> float:
        """What formula (1) gives with the table's own figures, USD."""
        return serverless_cost_usd(self.batches, self.lambda_usd_per_second, self.ec2_usd_per_second, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A column of Table III: a t2.large (two vCPUs) that computes all batches itself."""

    batch_size: int
    seconds: float
    """Time to compute gradients, of a peer and epoch."""
    usd: float
    """Estimated cost per peer, as printed."""
    ec2_usd_per_second: float = 0.00002578
    instance_type: str = "t2.large"

    def formula_usd(self) -> float:
        """What formula (2) gives with the table's own figures, USD."""
        return instance_cost_usd(self.ec2_usd_per_second, self.seconds)


TABLE_2 = (
    Serverless(batch_size=1024, batches=15, memory_mb=4400, seconds=41.2, lambda_usd_per_second=0.0000573, usd=0.03567),
    Serverless(batch_size=512, batches=30, memory_mb=2800, seconds=28.1, lambda_usd_per_second=0.0000362, usd=0.03069),
    Serverless(batch_size=128, batches=118, memory_mb=1800, seconds=12.9, lambda_usd_per_second=0.0000233, usd=0.03451),
    Serverless(batch_size=64, batches=235, memory_mb=1700, seconds=10.5, lambda_usd_per_second=0.0000220, usd=0.05435),
)
TABLE_3 = (
    Instance(batch_size=1024, seconds=258.0, usd=0.00665),
    Instance(batch_size=512, seconds=278.4, usd=0.00717),
    Instance(batch_size=128, seconds=330.4, usd=0.00851),
    Instance(batch_size=64, seconds=394.8, usd=0.01017),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry of Table I: one stage of one model, MNIST and CIFAR. Four peers, 30 batches, mean of four epochs."""

    cpu_percent: tuple[float, float]
    """Of one core, as psutil counts."""
    memory_mb: tuple[float, float]
    seconds: tuple[float, float]


#: By model and by stage, as the events of Peerless name both. VGG-11's memory is printed in GB.
TABLE_1: dict[str, dict[str, Stage]] = {
    "squeezenet1_1": {
        "compute": Stage(cpu_percent=(194.82, 195.45), memory_mb=(600, 570), seconds=(14.93, 14.01)),
        "send": Stage(cpu_percent=(39.37, 43.95), memory_mb=(568.29, 566.64), seconds=(0.084, 0.08)),
        "receive": Stage(cpu_percent=(71.85, 73.72), memory_mb=(555.32, 569.91), seconds=(0.25, 0.27)),
        "update": Stage(cpu_percent=(122.4, 141.5), memory_mb=(566, 530), seconds=(0.18, 0.0052)),
        "convergence": Stage(cpu_percent=(198.17, 196.17), memory_mb=(574, 540), seconds=(0.19, 0.16)),
    },
    "mobilenet_v3_small": {
        "compute": Stage(cpu_percent=(197.87, 198), memory_mb=(840, 640), seconds=(29.72, 24.01)),
        "send": Stage(cpu_percent=(40.45, 40.92), memory_mb=(835.70, 630.86), seconds=(0.11, 0.11)),
        "receive": Stage(cpu_percent=(75.3, 81.42), memory_mb=(843.81, 624.33), seconds=(0.38, 0.43)),
        "update": Stage(cpu_percent=(147.6, 134.8), memory_mb=(786, 780), seconds=(0.015, 0.016)),
        "convergence": Stage(cpu_percent=(198.05, 198), memory_mb=(800, 800), seconds=(1.12, 0.92)),
    },
    "vgg11": {
        "compute": Stage(cpu_percent=(198.4, 198.2), memory_mb=(4100, 4240), seconds=(104.37, 104.20)),
        "send": Stage(cpu_percent=(65.22, 74), memory_mb=(3190, 3075), seconds=(7.38, 6.72)),
        "receive": Stage(cpu_percent=(53.72, 56), memory_mb=(4800, 4330), seconds=(15.55, 19.54)),
        "update": Stage(cpu_percent=(166, 154), memory_mb=(2400, 2460), seconds=(4.8, 4.2)),
        "convergence": Stage(cpu_percent=(198.4, 198.8), memory_mb=(2410, 2400), seconds=(9.20, 7.6)),
    },
}

#: What the text says of Figure 3: the share of the time that serverless takes off, by number of peers and batch size.
TIME_REDUCTIONS = {(4, 64): 0.9734, (8, 128): 0.9204}
#: What the text says of Figure 6: MobileNet V3 Small, batches of 64, SGD at 0.001, synchronous.
SYNC_ACCURACY, SYNC_EPOCHS = 0.843, 128
