"""What `tiny` must be good for: learning something at once, quickly."""

import torch
import torch.nn.functional as F

from calseg_cli.networks.tiny import build_tiny


def test_it_learns_a_line_in_a_few_steps() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 0.2
    labels = torch.zeros(4, 32, 32, dtype=torch.long)
    for number in range(4):
        images[number, :, :, 6 * number + 4 : 6 * number + 10] += 0.6
        labels[number, :, 6 * number + 4 : 6 * number + 10] = 1
    network = build_tiny(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(F.interpolate(network(images), size=(32, 32), mode="bilinear"), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = F.interpolate(network(images), size=(32, 32), mode="bilinear").argmax(1)
    assert (found[labels == 1] == 1).float().mean() > 0.8


def test_it_starts_undecided() -> None:
    torch.manual_seed(0)
    probs = build_tiny(10).eval()(torch.rand(1, 3, 64, 64)).softmax(dim=1)
    assert probs.max() < 0.2
