"""Planted mistakes: a type checker finds one on each line that is marked, and none elsewhere."""
# ruff: noqa: F841

from __future__ import annotations

import numpy as np

from hansa import FedAvg, Plan, clip, mean
from hansa.aggregation import Clip
from hansa.learners import Softmax
from hansa.message import Message
from hansa.party import Party
from hansa.protocol import Aggregation
from hansa.update import Bounded, Mean, Update
from tests.typing.stand_ins import (
    bounded_only,
    gaussian,
    gaussian_each,
    multi_krum,
    noisy_mean,
    private_step,
    secure_sum,
)


def pipelines() -> None:
    """Wrong orders."""
    averaged: Aggregation[Update, Mean[Update]] = mean()

    clip_after_mean = averaged | clip(1.0)  # mistake
    noise_before_clip = gaussian_each() | clip(1.0)  # mistake
    robust_after_secure = clip(1.0) | secure_sum() | multi_krum()  # mistake
    noise_after_robust = clip(1.0) | multi_krum() | gaussian()  # mistake
    unclipped_into_sum: Aggregation[Update, Mean[Bounded]] = secure_sum()  # mistake
    unclipped_noise = averaged | gaussian()  # mistake
    unclipped_local_noise: Aggregation[Update, object] = gaussian_each() | noisy_mean()  # mistake
    two_aggregations = averaged | mean()  # mistake
    two_in_a_row = clip(1.0) | secure_sum() | secure_sum()  # mistake
    clipped_twice = clip(1.0) | clip(2.0)  # mistake
    noise_twice = clip(1.0) | mean() | gaussian() | gaussian()  # mistake
    noise_on_the_wrong_side = clip(1.0) | gaussian() | mean()  # mistake
    noisy_updates_in_a_plain_mean = clip(1.0) | gaussian_each() | secure_sum()  # mistake
    a_number = clip(1.0) | 2.0  # mistake


def plans() -> None:
    """What a plan does not take."""
    protocol, learner = FedAvg(rounds=1, cohort=1), Softmax()
    Plan(protocol, learner, clip(1.0) | mean())
    Plan(protocol, learner, mean())
    Plan(protocol, learner, clip(1.0))  # mistake
    Plan(protocol, learner, mean() | gaussian())  # mistake
    Plan(protocol, learner, secure_sum())  # mistake
    Plan(protocol, learner, secure_sum() | gaussian())  # mistake
    Plan(protocol, learner, noisy_mean())  # mistake
    Plan(learner, protocol)  # mistake


def steps(plain: Mean[Update], clipped: Mean[Bounded], update: Update) -> None:
    private_step(plain)  # mistake
    private_step(clipped)  # mistake
    bounded_only(update)  # mistake


class Hello(Message, frozen=True):
    tag = "typing.hello/1"
    discloses = "a greeting"


async def program(me: Party, update: Update, bounded: Bounded) -> None:
    await me.send("server", np.zeros(3))  # mistake
    await me.send("server", update)  # mistake
    await me.send("server", bounded)  # mistake
    await me.send("server", {"loss": 1.0})  # mistake
    await me.send("server", Hello)  # mistake
    await me.recv(Update, within=1.0)  # mistake
    await me.recv(Hello)  # mistake
    await me.send("server", Hello())
    number: str = await me.compute(len, "text")  # mistake
    await me.save(update)  # mistake
    me.now().append(number)  # mistake


async def contributions(me: Party, update: Update) -> None:
    await (clip(1.0) | mean()).contribute(me, "server", 1, update)
    await secure_sum().contribute(me, "server", 1, update)  # mistake
    await secure_sum().contribute(me, "server", 1, Clip(1.0).on_client(update, me.rng("clip")))
