"""What one round of secure aggregation ends in: a sum, and who is in it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.parties import Terms


@dataclass(frozen=True, slots=True, eq=False)
class SecureSum:
    """The sum of the survivors' clipped sums, with the noise of all of them.

    `listed` parties had signed the list; `named` revealed wrong shares, which were not needed.
    """

    total: NDArray[np.float64]
    survivors: tuple[str, ...]
    listed: int
    named: tuple[str, ...] = ()

    def facts(self, terms: Terms) -> dict[str, Any]:
        """For the record: how many were missing, of those allowed for, and what noise that left.

        `noise` is the sum's deviation as a multiple of what was paid for, while as many parties
        collude as the plan allows for: at least 1.
        """
        survived = len(self.survivors)
        noise = math.sqrt((survived - terms.colluding) / terms.shares)
        facts = {
            "parties": terms.parties,
            "listed": self.listed,
            "survived": survived,
            "dropouts": terms.parties - survived,
            "dropouts_allowed": terms.dropouts,
            "colluding_allowed": terms.colluding,
            "noise": round(noise, 6),
        }
        return facts | {"wrong_shares": list(self.named)} if self.named else facts
