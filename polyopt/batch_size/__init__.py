"""The batch size as a schedule: fixed, growing, decaying, or following the gradient noise scale.

:class:`Batches` says which samples an update takes, :class:`AccumulatedStep` makes the update from
micro-batches of one size, :class:`PaddedStep` from one real batch in an array of few sizes, and
:class:`RateForSize` gives the learning rate that goes with it.
"""

from __future__ import annotations

from polyopt.batch_size.accumulated import Accumulated as Accumulated
from polyopt.batch_size.accumulated import Outcome as Outcome
from polyopt.batch_size.buckets import Buckets as Buckets
from polyopt.batch_size.feed import Batches as Batches
from polyopt.batch_size.feed import Feed as Feed
from polyopt.batch_size.noise import DynamicSize as DynamicSize
from polyopt.batch_size.noise import NoiseScale as NoiseScale
from polyopt.batch_size.noise import Norms as Norms
from polyopt.batch_size.padded import PaddedStep as PaddedStep
from polyopt.batch_size.sizes import BatchSize as BatchSize
from polyopt.batch_size.sizes import InsteadOfDecay as InsteadOfDecay
from polyopt.batch_size.sizes import RateForSize as RateForSize
from polyopt.batch_size.sizes import RateOfSize as RateOfSize
from polyopt.batch_size.step import AccumulatedStep as AccumulatedStep
