"""What visibly mixes tokens outside attention is refused, and nothing else."""

import pytest
import torch
from torch import nn

from optpipe.errors import TraceError
from optpipe.tracing.mixing import refuse_mixing


class Mixing(nn.Module):
    """[1, T, 4] → the same, each token changed by those before it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv1d(4, 4, 3, padding=2)

    def forward(self, x):
        if self.how == "convolution":
            return self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return WAYS[self.how](x)


WAYS = {
    "running sum": lambda x: x.cumsum(1),
    "roll": lambda x: x.roll(1, 1),
    "total": lambda x: x / x.sum(1, keepdim=True),
    "total over all": lambda x: x - x.mean(),
    "largest": lambda x: x - x.amax((1, 2), keepdim=True),
    "order": lambda x: x.sort(1).values,
    "best": lambda x: x + x.topk(2, 1).values.sum(1, keepdim=True),
}


@pytest.mark.parametrize("how", ["convolution", *WAYS])
def test_what_mixes_tokens_outside_attention_is_refused_before_anything_runs(how, graph_of):
    gm = graph_of(Mixing(how), torch.randn(1, 11, 4))
    with pytest.raises(TraceError, match="one request would change another"):
        refuse_mixing(gm)


def test_the_same_over_channels_is_no_mixing(graph_of):
    class Channels(nn.Module):
        def forward(self, x):
            x = x.cumsum(-1) + x.sum(-1, keepdim=True) + x.amax(2, keepdim=True) + x.sort().values
            return torch.maximum(x, torch.max(x, -x)) + x.topk(1).values

    refuse_mixing(graph_of(Channels(), torch.randn(1, 11, 4)))
