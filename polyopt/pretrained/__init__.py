"""A real pre-trained transformer whose forward pass is written once, and texts to fine-tune it on."""

from __future__ import annotations

from polyopt.pretrained.bert import Bert as Bert
from polyopt.pretrained.bert import mean_pool as mean_pool
from polyopt.pretrained.bert import unit as unit
from polyopt.pretrained.gelu import gelu as gelu
from polyopt.pretrained.units import encoder_couplings as encoder_couplings
