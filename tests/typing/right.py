"""Pipelines that are right: no annotation is needed, and each has the type that its last line says."""

from __future__ import annotations

from typing import assert_type

from hansa import clip, mean
from hansa.protocol import Aggregation
from hansa.update import Bounded, Mean, Noised, Update
from tests.typing.stand_ins import gaussian, gaussian_each, multi_krum, noisy_mean, secure_sum

plain = clip(1.0) | mean()
assert_type(plain, Aggregation[Update, Mean[Bounded]])

central = clip(1.0) | mean() | gaussian()
assert_type(central, Aggregation[Update, Noised])

local = clip(1.0) | gaussian_each() | noisy_mean()
assert_type(local, Aggregation[Update, Noised])

unseen = clip(1.0) | secure_sum()
assert_type(unseen, Aggregation[Update, Mean[Bounded]])

distributed = clip(1.0) | secure_sum() | gaussian()
assert_type(distributed, Aggregation[Update, Noised])

robust = clip(1.0) | multi_krum()
assert_type(robust, Aggregation[Update, Mean[Update]])

stages = clip(1.0) | gaussian_each()
same = stages | noisy_mean()
assert_type(same, Aggregation[Update, Noised])

bare: Aggregation[Update, Mean[Update]] = mean("uniform")
