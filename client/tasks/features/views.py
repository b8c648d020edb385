"""Views of pictures and spectra: shifted and mirrored at random, each record by itself.

Several views of one record, averaged in one clipped gradient, teach what does not matter without a
further release (augmentation multiplicity: De et al. 2022, "Unlocking high-accuracy differentially
private image classification through scale"). What is drawn depends on no row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from privacy.contract.keys.tables import AugmentPlan


def views(x: Tensor, plan: AugmentPlan, generator: torch.Generator) -> Tensor:
    """Records x [B, C, H, W] as [B * views, C, H, W], the views of a record beside each other.

    A shift repeats the edge. Rows of any other form (those of an audit) are repeated as they are.
    """
    many = x.repeat_interleave(plan.views, 0)
    if many.dim() != 4 or not len(many):
        return many
    count, _, height, width = many.shape
    if plan.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        many = torch.where(mirrored.to(many.device)[:, None, None, None], many.flip(-1), many)
    if not (plan.across or plan.down):
        return many
    framed = functional.pad(many, (plan.across, plan.across, plan.down, plan.down), "replicate")
    row, column = (
        torch.randint(0, 2 * most + 1, (count, 1), generator=generator) + torch.arange(size)
        for most, size in ((plan.down, height), (plan.across, width))
    )
    at = torch.arange(count)[:, None, None]
    moved = framed.permute(0, 2, 3, 1)[at, row[:, :, None], column[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
