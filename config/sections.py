"""What a file or the environment may say of queues, jobs and subscribers, over what code says."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

_Pause = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """What is not given stays as the code has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class QueueSection(Section):
    """``[queues.images]``: see `umbel.WorkQueue`."""

    max_deliveries: PositiveInt | None = None
    prefetch: PositiveInt | None = None
    priorities: bool = False
    shards: PositiveInt | None = None


class RetrySection(Section):
    """``retry = {immediate = 1, delays_s = [10, 60]}``: see `umbel.Retry`."""

    immediate: NonNegativeInt = 0
    delays_s: tuple[_Pause, ...] = ()


class SubscriberSection(Section):
    """``[subscribers.book]``.

    Without ``queue``: the events of a subscriber are where its queue is.
    """

    max_deliveries: PositiveInt | None = None
    rate_limit: Annotated[
        str | None, Field(pattern=r"^\d+(\.\d+)?(/[smh])?$", description="'10/s', per worker")
    ] = None
    retry: RetrySection = RetrySection()
    timeout_s: PositiveFloat | None = None


class JobSection(SubscriberSection):
    """``[jobs."image.resize"]``."""

    queue: Annotated[str | None, Field(description="the name of a work queue")] = None
