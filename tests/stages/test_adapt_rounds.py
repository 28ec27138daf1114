"""Which candidate of a run in rounds is kept, and the average with what a round started from."""

import copy
from math import nan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from calseg_cli.methods.checkpoint_criteria import Outlook
from calseg_cli.stages.adapt_rounds import Candidate, Rounds, average_with, choose
from calseg_cli.stages.run_folder import NETWORK
from tests.ranks import together


def candidate(number, entropy, error=nan, refused=None):
    return Candidate(number, Outlook(entropy, 0.9, 0.5, np.array([0.25, 0.75]), 10), error, refused)


def test_lowest_entropy_but_never_a_refused_one():
    found = [candidate(0, 0.3), candidate(1, 0.2), candidate(2, 0.0, refused="collapsed")]
    assert choose(found, "entropy").round == 1
    assert choose(found, "last").round == 1
    assert choose([candidate(0, 0.1), candidate(1, 0.2)], "entropy").round == 0  # the un-adapted one may win
    assert choose([candidate(0, 0.1), candidate(1, 0.1)], "entropy").round == 0


def test_lowest_expected_error_where_one_is_expected():
    found = [candidate(0, 0.3, 0.05), candidate(1, 0.2, 0.02), candidate(2, 0.1, 0.04)]
    assert choose(found, "expected-error").round == 1
    assert choose([candidate(0, 0.3), candidate(1, 0.2)], "expected-error").round == 1


@pytest.mark.parametrize("error", [nan, 0.25])
def test_a_candidate_is_what_its_facts_say(error):
    one = candidate(1, 0.2, error, "because")
    again = Candidate.from_facts(one.facts())
    assert again.facts() == one.facts()
    assert again.outlook == one.outlook


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_the_average_is_of_parameters_alone(share):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    average_with(network, start, share)
    for name, tensor in network.named_parameters():
        torch.testing.assert_close(tensor, start[name] + share)
    for name, tensor in network.named_buffers():
        torch.testing.assert_close(tensor, start[name] + 1)


def test_whether_a_round_is_trained_already_is_the_main_processs_look(tmp_path):
    """A file system that several machines share may still show another one an older state."""
    (tmp_path / "0/round-1").mkdir(parents=True)
    (tmp_path / "0/round-1" / NETWORK).touch()

    def work(ranks):
        rounds, trained = Rounds.__new__(Rounds), []
        rounds._ranks, rounds.stage = ranks, SimpleNamespace(path=tmp_path / str(ranks.rank))
        rounds._load = trained.append  # which training begins with
        rounds._train(1, resume=True)
        return trained

    assert together(work, seconds=40) == [(0, []), (0, [])]
