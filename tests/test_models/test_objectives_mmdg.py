"""The compared methods' objectives: wiring, missing modalities, gradients, configs."""

import copy
import inspect
import itertools
import math
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from torch import nn
from torch.nn import functional as TF

from mmaction_mbcd.models import StepOutputs, layers
from mmaction_mbcd.models import mmdg_functional as F
from mmaction_mbcd.models.objectives.representation_flattening import Beta_  # noqa
