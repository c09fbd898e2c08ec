"""The batch size as a schedule: fixed, growing, decaying, or following the gradient noise scale.

``Batches`` says which samples an update takes, ``AccumulatedStep`` makes the update from
micro-batches of one size, ``PaddedStep`` from one real batch in an array of few sizes, and
``RateByPlannedSize`` gives the learning rate that goes with it.
"""

from __future__ import annotations

from polyopt.engine.batches.accumulated import Accumulated as Accumulated
from polyopt.engine.batches.accumulated import Outcome as Outcome
from polyopt.engine.batches.buckets import Buckets as Buckets
from polyopt.engine.batches.index_sampler import Batches as Batches
from polyopt.engine.batches.index_sampler import IndexSampler as IndexSampler
from polyopt.engine.batches.noise import DynamicSize as DynamicSize
from polyopt.engine.batches.noise import NoiseScale as NoiseScale
from polyopt.engine.batches.noise import Norms as Norms
from polyopt.engine.batches.padded import PaddedStep as PaddedStep
from polyopt.engine.batches.sizes import BatchSize as BatchSize
from polyopt.engine.batches.sizes import InsteadOfDecay as InsteadOfDecay
from polyopt.engine.batches.sizes import RateByPlannedSize as RateByPlannedSize
from polyopt.engine.batches.sizes import RateByReportedSize as RateByReportedSize
from polyopt.engine.batches.step import AccumulatedStep as AccumulatedStep
