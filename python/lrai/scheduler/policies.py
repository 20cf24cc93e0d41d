"""Every policy by its name, as the settings say it."""

from collections.abc import Mapping
from typing import Final

from lrai.scheduler.aimd import Aimd
from lrai.scheduler.learner import Learner
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.policy import Policy
from lrai.scheduler.static import FixedDelay, Greedy, Static

POLICIES: Final[Mapping[str, type[Policy]]] = {
    one.name: one for one in (ModelBased, Learner, Greedy, Aimd, FixedDelay, Static)
}
