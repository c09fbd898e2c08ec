"""Federated learning: aggregation of the clients' parameters as pure functions of trees.

Clients may run different frameworks; what comes out is on the server's, in bits that don't depend on the
order in which clients arrive.
"""

from __future__ import annotations

from polyopt.federated.clients import Client as Client
from polyopt.federated.flower import array_record as array_record
from polyopt.federated.flower import flower_strategy as flower_strategy
from polyopt.federated.flower import params_of as params_of
from polyopt.federated.mean import fedavg as fedavg
from polyopt.federated.population import participants as participants
from polyopt.federated.population import split_dirichlet as split_dirichlet
from polyopt.federated.population import split_iid as split_iid
from polyopt.federated.population import split_labels as split_labels
from polyopt.federated.proximal import Proximal as Proximal
from polyopt.federated.proximal import anchored as anchored
from polyopt.federated.robust import median as median
from polyopt.federated.robust import trimmed_mean as trimmed_mean
from polyopt.federated.robust import trimming as trimming
from polyopt.federated.server import Aggregate as Aggregate
from polyopt.federated.server import Server as Server
from polyopt.federated.server import pseudo_gradient as pseudo_gradient
from polyopt.federated.server_rules import SERVER_RULES as SERVER_RULES
from polyopt.federated.server_rules import FedAdagrad as FedAdagrad
from polyopt.federated.server_rules import FedAdam as FedAdam
from polyopt.federated.server_rules import FedYogi as FedYogi
